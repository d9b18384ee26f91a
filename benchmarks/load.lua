-- wrk sends prepared requests in random order. Arguments: a folder with a file "paths" and the bodies in files 1, 2, ...;
-- how many bodies; header lines. Paths and bodies are combined in turn until each was used.
local requests = {}

function init(arguments)
  local paths, bodies, headers = {}, {}, {}
  for path in io.lines(arguments[1] .. "/paths") do
    paths[#paths + 1] = path
  end
  for index = 1, tonumber(arguments[2]) do
    local file = assert(io.open(arguments[1] .. "/" .. index, "rb"))
    bodies[index] = file:read("*a")
    file:close()
  end
  for index = 3, #arguments do
    local name, value = arguments[index]:match("^([^:]+): (.*)$")
    headers[name] = value
  end
  for index = 0, math.max(#paths, #bodies) - 1 do
    local path, body = paths[index % #paths + 1], bodies[index % #bodies + 1]
    requests[index + 1] = wrk.format("POST", path, headers, body)
  end
  math.randomseed(20)
end

function request()
  return requests[math.random(#requests)]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
