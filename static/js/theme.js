// Runs before the first paint, so that a chosen theme never flashes and scripted parts know that scripts run.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const theme = localStorage.getItem("theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch {
    // Storage can be blocked; the system's theme holds then.
  }
})();
