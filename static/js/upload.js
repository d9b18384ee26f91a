// Progress of a multipart form that htmx sends: share, size, speed and a way to stop. Without scripts the form posts as usual.
(() => {
  const MEGABYTE = 1e6;
  const uploads = new WeakMap();
  const isUpload = (element) => element instanceof HTMLFormElement && element.enctype === "multipart/form-data";

  function start(form, xhr) {
    const box = document.createElement("div");
    box.className = "progress";
    const bar = document.createElement("progress");
    bar.max = 100;
    bar.setAttribute("aria-label", "Upload");
    const line = document.createElement("div");
    line.className = "row between";
    const text = document.createElement("span");
    text.textContent = "Starting the upload…";
    const cancel = document.createElement("button");
    Object.assign(cancel, { type: "button", className: "btn btn-small", textContent: "Cancel the upload" });
    cancel.addEventListener("click", () => xhr.abort());
    line.append(text, cancel);
    box.append(bar, line);
    form.append(box);
    uploads.set(form, { box, bar, text, startedAt: performance.now() });
  }

  function advance(form, { loaded, total }) {
    const { bar, text, startedAt } = uploads.get(form);
    const seconds = (performance.now() - startedAt) / 1000;
    const size = (bytes) => (bytes / MEGABYTE).toFixed(1);
    const share = total ? Math.floor((100 * loaded) / total) : 0;
    bar.value = share;
    text.textContent = share < 100
      ? `${size(loaded)} of ${size(total)} MB · ${share} % · ${size(loaded / Math.max(seconds, 0.1))} MB/s`
      : `${size(total)} MB sent. The server is checking the file…`;
  }

  function finish(form) {
    uploads.get(form)?.box.remove();
    uploads.delete(form);
  }

  function note(form, sentence) {
    const line = document.createElement("p");
    line.className = "callout";
    line.setAttribute("role", "status");
    line.textContent = sentence;
    form.append(line);
  }

  document.addEventListener("htmx:configRequest", (event) => {
    // The page-wide timeout is for pages; a large file may take as long as it needs.
    if (isUpload(event.detail.elt)) event.detail.timeout = 0;
  });
  document.addEventListener("htmx:beforeSend", (event) => {
    const form = event.detail.elt;
    if (!isUpload(form)) return;
    form.querySelector("p.callout[role=status]")?.remove();
    start(form, event.detail.xhr);
  });
  document.addEventListener("htmx:xhr:progress", (event) => {
    // The same event reports the download of the answer, which has no known length.
    if (uploads.has(event.target) && event.detail.lengthComputable) advance(event.target, event.detail);
  });
  document.addEventListener("htmx:sendAbort", ({ target }) => {
    if (isUpload(target)) note(target, "The upload was cancelled. Nothing was saved.");
  });
  document.addEventListener("htmx:afterRequest", ({ target }) => finish(target));
  addEventListener("beforeunload", (event) => {
    if (document.querySelector("form > .progress")) event.preventDefault();
  });
})();
