// Checks all boxes of a form that have one name, or none of them.
(function () {
    if (window.lorakitTick) return;
    window.lorakitTick = true;

    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest("[data-tick]");
        const form = button && button.closest("[data-form]");
        if (!form || button.disabled) return;
        for (const box of form.querySelectorAll("input[type=checkbox]")) {
            if (box.name === button.dataset.tick) box.checked = button.dataset.tickTo === "all";
        }
    });
})();
