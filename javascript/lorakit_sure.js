// Asks for a second press of a button where that is wanted: see lorakit.js.
(function () {
    if (window.lorakitSure) return;
    const ASK_MS = 5000;

    function sure(button) { // whether what it does may be done
        if (!button.dataset.ask) return true;
        const what = JSON.stringify([button.dataset.do, button.dataset.set, button.dataset.askMore]);
        if (button.lkAsked) {
            const same = button.lkAskedFor === what; // the page may have changed: what was asked is no answer to this
            button.lkAsked();
            if (same) return true;
        }
        button.lkAskedFor = what;
        const label = Array.from(button.childNodes), question = document.createElement("span"), more = document.createElement("span");
        question.textContent = button.dataset.ask; // words of their own, so that they can be translated
        more.textContent = button.dataset.askMore || "";
        more.className = "notranslate";
        button.replaceChildren(question, ...(more.textContent ? [" ", more] : []));
        button.classList.add("lk-asked");
        const back = () => {
            clearTimeout(timer);
            button.lkAsked = null;
            button.classList.remove("lk-asked");
            if (button.firstChild === question) button.replaceChildren(...label);
        };
        const timer = setTimeout(back, ASK_MS);
        button.lkAsked = back;
        return false;
    }

    window.lorakitSure = sure;
})();
