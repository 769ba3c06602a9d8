// A picture shown large: opened by [data-look], closed by Escape, its button or a click beside it.
(function () {
    if (window.lorakitLook) return;
    window.lorakitLook = true;
    let wanted = "", opener = null;

    function shown() {
        const view = document.querySelector('[data-lk-view="look"]');
        return view && view.querySelector(".lk-look");
    }

    function open(button) {
        if (!wanted) opener = button;
        wanted = button.dataset.look;
        window.lorakit.look("running", {look: JSON.parse(wanted)}, false);
        update();
    }

    function close() {
        wanted = "";
        window.lorakit.panel("running").view.look = null;
        update();
        if (opener && opener.isConnected) opener.focus();
        opener = null;
    }

    function update() {
        const dialog = shown();
        if (!dialog) return;
        const is = wanted !== "" && same(dialog.dataset.shown, wanted);
        const was = dialog.classList.contains("lk-shown");
        if (is === was) return;
        dialog.classList.toggle("lk-shown", is);
        const last = dialog.querySelector(".lk-buttons button:last-child");
        if (is && last && !dialog.contains(document.activeElement)) last.focus();
    }

    function same(one, other) { // the server writes the same facts in an order of its own
        const sorted = (text) => JSON.stringify(Object.entries(JSON.parse(text)).sort());
        return sorted(one) === sorted(other);
    }

    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest("[data-look]");
        if (button && !button.disabled) return open(button);
        if (wanted && (event.target.closest("[data-close]") || event.target === shown())) close();
    });
    document.addEventListener("keydown", (event) => {
        const dialog = shown();
        if (!wanted || !dialog) return;
        if (event.key === "Escape") {
            event.preventDefault();
            event.stopPropagation(); // the webui's own answer to Escape fails where there is no Interrupt button
            close();
        } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
            const button = dialog.querySelectorAll("[data-look]")[event.key === "ArrowLeft" ? 0 : 1];
            if (button && !button.disabled) open(button);
        } else if (event.key === "Tab") { // the page behind is out of reach
            const buttons = Array.from(dialog.querySelectorAll("button:not([disabled])"));
            const at = buttons.indexOf(document.activeElement) + (event.shiftKey ? -1 : 1);
            event.preventDefault();
            buttons[(at + buttons.length) % buttons.length].focus();
        }
    }, true);
    document.addEventListener("lorakit", (event) => { if (event.detail === "look") update(); });
})();
