// Asks the server how training goes, by clicking the page's hidden refresh button: works with gradio's queue on or
// off, and after a reload of the page.
(function () {
    if (window.lorakitPolling) return;
    const RUNNING_MS = 1500, IDLE_MS = 6000;
    let last = 0;

    function poll() {
        const button = document.getElementById("lorakit_refresh");
        const progress = document.getElementById("lorakit_progress");
        const shown = progress && progress.offsetParent !== null && !document.hidden;
        if (!button || !shown) return;
        const running = window.lorakitBusy || progress.querySelector(".lk-running") !== null;
        if (Date.now() - last < (running ? RUNNING_MS : IDLE_MS)) return;
        last = Date.now();
        window.lorakitBusy = false;
        button.click();
    }

    window.lorakitPolling = setInterval(poll, 500);
})();
