// The yardstick: how fast a hand-written server over the same ONNX Runtime can be when it does nothing but serve.
//
// One thread, epoll, HTTP/1.1 with keep-alive and pipelining, one model with one FP32 input, JSON and binary tensors of
// the Open Inference Protocol V2. What arrived in one epoll round runs as one batch. No tokens, no log, no metrics,
// no validation beyond what parsing needs: a request that it does not understand closes its connection.
//
// Usage: server MODEL.onnx PORT LIBONNXRUNTIME.so

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "yardstick: %s\n", what);
    std::exit(1);
}

// ONNX Runtime's C API is a table of function pointers to which new versions only append. The Python wheel ships the
// library without its header, so the few entries in use are declared here by their position in that table.
namespace ort {

constexpr uint32_t kApiVersion = 17;
constexpr int kWarning = 2;                          // OrtLoggingLevel
constexpr int kFloat = 1, kInt64 = 7;                // ONNXTensorElementDataType
constexpr int kArenaAllocator = 1, kMemDefault = 0;  // OrtAllocatorType, OrtMemType

enum Slot {
    kGetErrorMessage = 2,
    kCreateEnv = 3,
    kCreateSession = 7,
    kRun = 9,
    kCreateSessionOptions = 10,
    kSetIntraOpNumThreads = 24,
    kSetInterOpNumThreads = 25,
    kSessionGetOutputCount = 31,
    kSessionGetInputName = 36,
    kSessionGetOutputName = 37,
    kCreateTensorWithDataAsOrtValue = 49,
    kGetTensorMutableData = 51,
    kGetTensorElementType = 60,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kCreateCpuMemoryInfo = 69,
    kGetAllocatorWithDefaultOptions = 78,
    kReleaseValue = 96,
    kReleaseTensorTypeAndShapeInfo = 99,
};

struct ApiBase {
    void* const* (*get_api)(uint32_t version);
    const char* (*get_version)();
};

void* const* table;

template <typename... Arguments>
void call(Slot slot, Arguments... arguments) {
    void* status = reinterpret_cast<void* (*)(Arguments...)>(table[slot])(arguments...);
    if (status != nullptr) fail(reinterpret_cast<const char* (*)(void*)>(table[kGetErrorMessage])(status));
}

void release(Slot slot, void* object) { reinterpret_cast<void (*)(void*)>(table[slot])(object); }

void load(const char* library) {
    void* handle = dlopen(library, RTLD_NOW);
    if (handle == nullptr) fail(dlerror());
    auto get_base = reinterpret_cast<const ApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (get_base == nullptr) fail("the library has no OrtGetApiBase");
    table = get_base()->get_api(kApiVersion);
    if (table == nullptr) fail("the library does not offer the C API in the version that is used here");
}

}  // namespace ort

struct Output {
    std::string name;
    int type = 0;
    std::vector<int64_t> shape;  // of the whole batch
    const char* data = nullptr;
    size_t row_elements = 1;

    size_t row_bytes() const { return row_elements * (type == ort::kInt64 ? 8 : 4); }
};

class Model {
public:
    explicit Model(const char* path) {
        void *env = nullptr, *options = nullptr, *allocator = nullptr;
        ort::call(ort::kCreateEnv, ort::kWarning, "yardstick", &env);
        ort::call(ort::kCreateSessionOptions, &options);
        ort::call(ort::kSetIntraOpNumThreads, options, 1);
        ort::call(ort::kSetInterOpNumThreads, options, 1);
        ort::call(ort::kCreateSession, env, path, options, &session_);
        ort::call(ort::kGetAllocatorWithDefaultOptions, &allocator);
        ort::call(ort::kCreateCpuMemoryInfo, ort::kArenaAllocator, ort::kMemDefault, &memory_);
        ort::call(ort::kSessionGetInputName, session_, size_t{0}, allocator, &input_name_);
        size_t count = 0;
        ort::call(ort::kSessionGetOutputCount, session_, &count);
        outputs_.resize(count);
        for (size_t index = 0; index < count; ++index) {
            char* name = nullptr;
            ort::call(ort::kSessionGetOutputName, session_, index, allocator, &name);
            outputs_[index].name = name;
            output_names_.push_back(name);
        }
        values_.resize(count);
    }

    // Runs the rows; the outputs stay valid until `done`.
    const std::vector<Output>& run(std::vector<float>& rows, const std::vector<int64_t>& shape) {
        void* input = nullptr;
        ort::call(ort::kCreateTensorWithDataAsOrtValue, memory_, static_cast<void*>(rows.data()),
                  rows.size() * sizeof(float), shape.data(), shape.size(), ort::kFloat, &input);
        std::fill(values_.begin(), values_.end(), nullptr);
        const char* const names[] = {input_name_};
        const void* const inputs[] = {input};
        ort::call(ort::kRun, session_, static_cast<const void*>(nullptr), &names[0], &inputs[0], size_t{1},
                  output_names_.data(), output_names_.size(), values_.data());
        ort::release(ort::kReleaseValue, input);
        for (size_t index = 0; index < outputs_.size(); ++index) describe(values_[index], outputs_[index]);
        return outputs_;
    }

    void done() {
        for (void* value : values_) ort::release(ort::kReleaseValue, value);
    }

private:
    static void describe(void* value, Output& output) {
        void *info = nullptr, *data = nullptr;
        size_t dimensions = 0;
        ort::call(ort::kGetTensorTypeAndShape, value, &info);
        ort::call(ort::kGetTensorElementType, info, &output.type);
        ort::call(ort::kGetDimensionsCount, info, &dimensions);
        output.shape.resize(dimensions);
        ort::call(ort::kGetDimensions, info, output.shape.data(), dimensions);
        ort::release(ort::kReleaseTensorTypeAndShapeInfo, info);
        ort::call(ort::kGetTensorMutableData, value, &data);
        output.data = static_cast<const char*>(data);
        output.row_elements = 1;
        for (size_t axis = 1; axis < dimensions; ++axis) output.row_elements *= static_cast<size_t>(output.shape[axis]);
    }

    void *session_ = nullptr, *memory_ = nullptr;
    char* input_name_ = nullptr;
    std::vector<const char*> output_names_;
    std::vector<Output> outputs_;
    std::vector<void*> values_;
};

struct Connection {
    explicit Connection(int socket) : socket(socket) {}
    ~Connection() { close(socket); }

    int socket;
    std::string in, out;
    size_t sent = 0;
    bool is_broken = false, waits_to_write = false;
};

struct Pending {
    Connection* connection;
    bool is_binary;  // asked in binary, answered in binary
};

// The round's rows, all of one shape; a request of another shape starts a batch of its own.
struct Batch {
    std::vector<float> rows;
    std::vector<int64_t> shape;
    std::vector<Pending> pending;
};

// The value of a header, case-insensitive; `head` is everything before the empty line.
std::string_view header(std::string_view head, std::string_view name) {
    for (size_t line = head.find("\r\n"); line != head.npos; line = head.find("\r\n", line)) {
        line += 2;
        if (head.size() - line > name.size() && head[line + name.size()] == ':' &&
            strncasecmp(head.data() + line, name.data(), name.size()) == 0) {
            size_t begin = head.find_first_not_of(' ', line + name.size() + 1);
            return head.substr(begin, head.find("\r\n", begin) - begin);
        }
    }
    return {};
}

size_t number(std::string_view text, size_t otherwise) {
    size_t value = otherwise;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return value;
}

// Appends the numbers of the JSON array that follows `key`; false if there is none.
template <typename Number>
bool read_array(std::string_view json, std::string_view key, std::vector<Number>& numbers) {
    size_t found = json.find(key);
    if (found == json.npos) return false;
    size_t bracket = json.find('[', found + key.size());
    if (bracket == json.npos) return false;
    const char *at = json.data() + bracket + 1, *end = json.data() + json.size();
    while (at < end) {
        Number value{};
        auto [next, error] = std::from_chars(at, end, value);
        if (error == std::errc()) {
            numbers.push_back(value);
            at = next;
        } else if (*at == ']') {
            return true;
        } else if (*at == ',' || *at == ' ') {
            ++at;
        } else {
            return false;
        }
    }
    return false;
}

template <typename Number>
void write_number(std::string& out, Number value) {
    char text[32];
    auto [end, error] = std::to_chars(text, text + sizeof text, value);
    out.append(text, end);
}

class Server {
public:
    Server(Model& model, uint16_t port) : model_(model), epoll_(epoll_create1(0)) {
        listener_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        int on = 1;
        setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail("the port is taken");
        listen(listener_, 1024);
        watch(EPOLL_CTL_ADD, listener_, EPOLLIN, nullptr);
    }

    [[noreturn]] void serve() {
        std::vector<epoll_event> events(256);
        for (;;) {
            int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
            for (int index = 0; index < count; ++index) {
                auto* connection = static_cast<Connection*>(events[index].data.ptr);
                if (connection == nullptr) {
                    accept_all();
                    continue;
                }
                touched_.push_back(connection);
                if (events[index].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(*connection);
            }
            answer();
            for (Connection* connection : touched_) {
                send_out(*connection);
                if (connection->is_broken) delete connection;
            }
            touched_.clear();
        }
    }

private:
    void watch(int operation, int socket, uint32_t events, Connection* connection) {
        epoll_event event{};
        event.events = events;
        event.data.ptr = connection;
        epoll_ctl(epoll_, operation, socket, &event);
    }

    void accept_all() {
        for (;;) {
            int socket = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK);
            if (socket < 0) return;
            int on = 1;
            setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            watch(EPOLL_CTL_ADD, socket, EPOLLIN, new Connection(socket));
        }
    }

    void receive(Connection& connection) {
        ssize_t length = recv(connection.socket, buffer_.get(), kBufferBytes, 0);
        if (length > 0) {
            connection.in.append(buffer_.get(), static_cast<size_t>(length));
            parse(connection);
        } else if (length == 0 || errno != EAGAIN) {
            connection.is_broken = true;
        }
    }

    void parse(Connection& connection) {
        std::string_view in = connection.in;
        while (!connection.is_broken) {
            size_t head_end = in.find("\r\n\r\n");
            if (head_end == in.npos) break;
            std::string_view head = in.substr(0, head_end + 2);
            size_t length = number(header(head, "content-length"), 0);
            if (in.size() < head_end + 4 + length) break;
            std::string_view body = in.substr(head_end + 4, length);
            size_t json_length = number(header(head, "inference-header-content-length"), length);
            connection.is_broken = json_length > length || !queue(connection, body, json_length);
            in.remove_prefix(head_end + 4 + length);
        }
        connection.in.erase(0, connection.in.size() - in.size());
    }

    bool queue(Connection& connection, std::string_view body, size_t json_length) {
        std::string_view json = body.substr(0, json_length), binary = body.substr(json_length);
        shape_.clear();
        if (!read_array(json, "\"shape\":", shape_) || shape_.empty() || shape_[0] != 1) return false;
        size_t elements = 1;
        for (int64_t size : shape_) elements *= static_cast<size_t>(size);
        if (batches_.empty() || batches_.back().shape != shape_) batches_.push_back({{}, shape_, {}});
        Batch& batch = batches_.back();
        size_t before = batch.rows.size();
        if (!read_row(json, binary, elements, batch.rows)) {
            batch.rows.resize(before);
            return false;
        }
        batch.pending.push_back({&connection, !binary.empty()});
        return true;
    }

    static bool read_row(std::string_view json, std::string_view binary, size_t elements, std::vector<float>& rows) {
        size_t before = rows.size();
        if (binary.empty()) return read_array(json, "\"data\":", rows) && rows.size() == before + elements;
        if (binary.size() != elements * sizeof(float)) return false;
        rows.resize(before + elements);
        std::memcpy(rows.data() + before, binary.data(), binary.size());
        return true;
    }

    void answer() {
        for (Batch& batch : batches_) {
            if (batch.pending.empty()) continue;
            batch.shape[0] = static_cast<int64_t>(batch.pending.size());
            const std::vector<Output>& outputs = model_.run(batch.rows, batch.shape);
            for (size_t row = 0; row < batch.pending.size(); ++row) write_answer(batch.pending[row], outputs, row);
            model_.done();
        }
        batches_.clear();
    }

    void write_answer(const Pending& pending, const std::vector<Output>& outputs, size_t row) {
        json_.assign(R"({"model_name":"yardstick","outputs":[)");
        binary_.clear();
        for (const Output& output : outputs) {
            if (&output != &outputs.front()) json_ += ',';
            json_.append(R"({"name":")").append(output.name).append(R"(","datatype":")");
            json_.append(output.type == ort::kInt64 ? "INT64" : "FP32").append(R"(","shape":[1)");
            for (size_t axis = 1; axis < output.shape.size(); ++axis) {
                json_ += ',';
                write_number(json_, output.shape[axis]);
            }
            const char* data = output.data + row * output.row_bytes();
            if (pending.is_binary) {
                json_.append(R"(],"parameters":{"binary_data_size":)");
                write_number(json_, output.row_bytes());
                json_.append("}}");
                binary_.append(data, output.row_bytes());
            } else {
                json_.append(R"(],"data":[)");
                write_elements(output, data);
                json_.append("]}");
            }
        }
        json_.append("]}");
        std::string& out = pending.connection->out;
        out.append("HTTP/1.1 200 OK\r\ncontent-type: ");
        out.append(pending.is_binary ? "application/octet-stream" : "application/json");
        if (pending.is_binary) {
            out.append("\r\ninference-header-content-length: ");
            write_number(out, json_.size());
        }
        out.append("\r\ncontent-length: ");
        write_number(out, json_.size() + binary_.size());
        out.append("\r\n\r\n").append(json_).append(binary_);
    }

    void write_elements(const Output& output, const char* data) {
        for (size_t element = 0; element < output.row_elements; ++element) {
            if (element != 0) json_ += ',';
            if (output.type == ort::kInt64) {
                write_number(json_, reinterpret_cast<const int64_t*>(data)[element]);
            } else {
                write_number(json_, reinterpret_cast<const float*>(data)[element]);
            }
        }
    }

    void send_out(Connection& connection) {
        while (!connection.is_broken && connection.sent < connection.out.size()) {
            ssize_t length = send(connection.socket, connection.out.data() + connection.sent,
                                  connection.out.size() - connection.sent, MSG_NOSIGNAL);
            if (length < 0) {
                connection.is_broken = errno != EAGAIN;
                break;
            }
            connection.sent += static_cast<size_t>(length);
        }
        bool is_blocked = connection.sent < connection.out.size();
        if (!is_blocked) {
            connection.out.clear();
            connection.sent = 0;
        }
        if (is_blocked != connection.waits_to_write && !connection.is_broken) {
            connection.waits_to_write = is_blocked;
            watch(EPOLL_CTL_MOD, connection.socket, is_blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, &connection);
        }
    }

    static constexpr size_t kBufferBytes = 256 * 1024;

    Model& model_;
    int epoll_, listener_ = -1;
    std::unique_ptr<char[]> buffer_ = std::make_unique<char[]>(kBufferBytes);
    std::vector<Connection*> touched_;
    std::vector<Batch> batches_;
    std::vector<int64_t> shape_;
    std::string json_, binary_;
};

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) fail("usage: server MODEL.onnx PORT LIBONNXRUNTIME.so");
    ort::load(arguments[3]);
    Model model(arguments[1]);
    Server(model, static_cast<uint16_t>(std::atoi(arguments[2]))).serve();
}
