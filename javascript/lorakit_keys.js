// gradio 3 makes the titles of its accordions, and what takes files, of plain <div>s, which no key reaches: within our
// page they become buttons for the keyboard and for screen readers too. Later gradios have buttons there.
(function () {
    if (window.lorakitKeys) return;
    const TICK_MS = 500, TITLES = ".lorakit div.label-wrap", DROPS = ".lorakit div > input[type=file]";

    function reachable(element) {
        if (element.tabIndex >= 0) return;
        element.tabIndex = 0;
        element.setAttribute("role", "button");
        element.dataset.lkPressed = "";
    }

    function tick() {
        for (const title of document.querySelectorAll(TITLES)) {
            reachable(title);
            const open = String(title.classList.contains("open"));
            if (title.getAttribute("aria-expanded") !== open) title.setAttribute("aria-expanded", open);
        }
        for (const field of document.querySelectorAll(DROPS)) {
            if (!field.closest("button")) reachable(field.parentElement);
        }
    }

    document.addEventListener("keydown", (event) => {
        const here = event.target;
        if (!here.dataset || here.dataset.lkPressed === undefined || (event.key !== "Enter" && event.key !== " ")) return;
        event.preventDefault(); // the space bar would scroll
        here.click();
        setTimeout(tick, 0);
    });
    window.lorakitKeys = setInterval(tick, TICK_MS);
    tick();
})();
