// Small conveniences on top of pages that work without them: local times, copying, dialogs, themes, messages, polling.
(() => {
  const MINUTE = 60_000;

  // Times: the server writes UTC; here they move to the viewer's zone and name it.
  const zone = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });
  const pad = (part) => String(part).padStart(2, "0");

  function ago(at) {
    const seconds = (Date.now() - at) / 1000;
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (Math.abs(seconds) < size) continue;
      const amount = `${Math.floor(Math.abs(seconds) / size)} ${unit}`;
      return seconds > 0 ? `${amount} ago` : `in ${amount}`;
    }
    return seconds >= 0 ? "just now" : "in under a minute";
  }

  function absolute(at) {
    const name = zone.formatToParts(at).find((part) => part.type === "timeZoneName").value;
    return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${pad(at.getHours())}:${pad(at.getMinutes())} ${name}`;
  }

  function showTimes(root = document) {
    for (const time of root.querySelectorAll("time[data-time]")) {
      const at = new Date(time.dateTime);
      const isRelative = time.dataset.time === "relative";
      if (time.dataset.time !== "utc") time.textContent = isRelative ? ago(at) : absolute(at);
      time.title = isRelative ? absolute(at) : ago(at);
    }
  }

  // Copy buttons: beside each code[data-copy], and for any [data-copy-from="#id"] button.
  function addCopyButtons(root) {
    for (const code of root.querySelectorAll("code[data-copy]:not([data-ready])")) {
      code.dataset.ready = "";
      const button = document.createElement("button");
      button.type = "button";
      button.className = "btn btn-quiet copy";
      button.dataset.copyText = code.dataset.copy;
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy ${code.textContent}`);
      code.after(button);
    }
  }

  // A wide table scrolls sideways; the keyboard must reach it even when nothing in it takes the focus.
  function makeScrollersReachable(root) {
    for (const wrap of root.querySelectorAll(".table-wrap:not([tabindex])")) {
      if (wrap.scrollWidth <= wrap.clientWidth || wrap.querySelector("a, button, input, select")) continue;
      wrap.tabIndex = 0;
      wrap.setAttribute("role", "region");
      wrap.setAttribute("aria-label", wrap.closest("section, figure")?.querySelector("h2, h3")?.textContent || "Table");
    }
  }

  async function copy(button) {
    const source = button.dataset.copyFrom && document.querySelector(button.dataset.copyFrom);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(source ? source.value || source.textContent : button.dataset.copyText);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
      if (source) getSelection().selectAllChildren(source);
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  function enhance(root) {
    showTimes(root);
    addCopyButtons(root);
    makeScrollersReachable(root);
  }

  // Theme: the stored choice is applied before the first paint by theme.js.
  function currentTheme() {
    return document.documentElement.dataset.theme || "system";
  }

  function markTheme() {
    for (const button of document.querySelectorAll("[data-set-theme]")) {
      button.setAttribute("aria-pressed", String(button.dataset.setTheme === currentTheme()));
    }
  }

  function setTheme(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      if (theme === "system") localStorage.removeItem("theme");
      else localStorage.setItem("theme", theme);
    } catch {
      // Blocked storage: the choice holds for this page.
    }
    markTheme();
    document.dispatchEvent(new Event("themechange"));
  }

  // Messages: what the server refused or could not answer, in the status region.
  function announce(text) {
    const region = document.getElementById("messages");
    if (!region) return;
    const item = document.createElement("div");
    item.className = "callout bad";
    const span = document.createElement("span");
    span.textContent = text;
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "btn btn-quiet btn-small dismiss", textContent: "Dismiss" });
    button.dataset.dismiss = ".callout";
    item.append(span, button);
    region.replaceChildren(item);
    item.scrollIntoView({ block: "nearest" });
  }

  function refusal(xhr) {
    const page = new DOMParser().parseFromString(xhr.responseText, "text/html");
    const sentence = page.querySelector("[data-refusal]");
    return sentence ? sentence.textContent : `The server answered ${xhr.status}. Reload the page and try again.`;
  }

  const isPolling = (element) => /\bevery\b/.test(element.getAttribute("hx-trigger") || "");

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-copy-text], [data-copy-from], [data-set-theme], [data-dismiss], [data-open], [data-close]");
    for (const menu of document.querySelectorAll("details[data-menu][open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
    if (!target) {
      if (event.target instanceof HTMLDialogElement) event.target.close();
      return;
    }
    const { copyText, copyFrom, setTheme: theme, dismiss, open } = target.dataset;
    if (copyText || copyFrom) copy(target);
    else if (theme) setTheme(theme);
    else if (dismiss) target.closest(dismiss).remove();
    else if (open) {
      event.preventDefault();
      document.querySelector(open).showModal();
    } else target.closest("dialog").close();
  });

  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && document.querySelector("details[data-menu][open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // A form is sent once: a second click while the answer is on its way does nothing.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || form.matches("[hx-post]")) return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  document.addEventListener("htmx:confirm", (event) => {
    if (document.hidden && isPolling(event.detail.elt) && !event.detail.triggeringEvent) event.preventDefault();
  });
  document.addEventListener("htmx:responseError", (event) => {
    if (!isPolling(event.detail.elt)) announce(refusal(event.detail.xhr));
  });
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, (event) => {
      if (!isPolling(event.detail.elt)) announce("The server did not answer. Check your connection, then try again.");
    });
  }
  document.addEventListener("htmx:afterSettle", (event) => {
    const root = event.detail.elt;
    enhance(root);
    root.querySelector(".error-summary")?.focus();
  });

  enhance(document);
  markTheme();
  document.querySelector(".error-summary")?.focus();
  setInterval(() => { if (!document.hidden) showTimes(); }, MINUTE);
})();
