// Pictures and captions: buttons within our own HTML press hidden gradio buttons; typed captions are kept until the
// server says that it has saved them, whatever is shown meanwhile. Nothing from a user becomes HTML here.
(function () {
    if (window.lorakitCaptions) return;
    const TICK_MS = 500, SEND_MS = 150, AGAIN_MS = 4000;
    const asked = {};
    const typed = new Map(); // "folder|name" -> {folder, name, was, text, n}
    let count = 0, sending = null, lastTyped = "", current = null; // the field that is written in, and where in it

    function root() { // gradio 3 and later put the page into the document, some hosts into a shadow root
        const app = document.querySelector("gradio-app");
        return (app && app.shadowRoot) || document;
    }

    function byId(id) {
        return root().getElementById ? root().getElementById(id) : root().querySelector("#" + id);
    }

    function put(id, text) { // into a hidden gradio textbox
        const place = byId(id), field = place && place.querySelector("textarea, input");
        if (!field || field.value === text) return;
        field.value = text;
        field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    function press(id) {
        const button = byId(id);
        if (button) (button.tagName === "BUTTON" ? button : button.querySelector("button") || button).click();
    }

    // ---- buttons in our HTML

    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest("[data-lk-press]");
        if (!button || !button.closest(".lorakit")) return;
        event.preventDefault();
        const target = button.dataset.lkPress;
        send();
        put(target + "_value", button.dataset.lkValue || "");
        setTimeout(() => press(target), 30); // gradio takes a field's new value a moment later
    });

    // ---- captions

    function key(folder, name) {
        return folder + "|" + name;
    }

    function send() {
        clearTimeout(sending);
        put("lorakit_caption_edits", typed.size ? JSON.stringify(Array.from(typed.values())) : "");
        const save = byId("lorakit_caption_save");
        if (save) save.classList.toggle("lk-unsaved", typed.size > 0);
    }

    function show(field, unsaved) {
        const card = field.closest(".lk-caption-card");
        if (card) card.classList.toggle("lk-unsaved", unsaved);
    }

    document.addEventListener("input", (event) => {
        const field = event.target;
        if (!field.dataset || field.dataset.lkCaption === undefined) return;
        const folder = field.closest("[data-lk-folder]").dataset.lkFolder, name = field.dataset.lkCaption;
        if (field.value === field.defaultValue) {
            typed.delete(key(folder, name));
        } else {
            count += 1;
            typed.set(key(folder, name), {folder, name, was: field.dataset.lkWas, text: field.value, n: count});
        }
        show(field, typed.has(key(folder, name)));
        clearTimeout(sending);
        sending = setTimeout(send, SEND_MS);
    });

    document.addEventListener("change", (event) => {
        if (event.target.dataset && event.target.dataset.lkCaption !== undefined) send();
    });

    document.addEventListener("keydown", (event) => {
        const field = event.target;
        if (!field.dataset || field.dataset.lkCaption === undefined || !(event.ctrlKey || event.metaKey)) return;
        if (event.key !== "Enter" && event.key.toLowerCase() !== "s") return;
        event.preventDefault();
        event.stopPropagation(); // the webui draws a picture on Ctrl+Enter
        send();
        setTimeout(() => press("lorakit_caption_save"), 60);
    }, true);

    function remember(event) {
        const field = event.target;
        if (!field.dataset || field.dataset.lkCaption === undefined) return;
        current = {field, name: field.dataset.lkCaption, start: field.selectionStart, end: field.selectionEnd};
    }

    for (const name of ["focusin", "keyup", "click", "input"]) document.addEventListener(name, remember);
    document.addEventListener("focusout", (event) => {
        const field = event.target;
        setTimeout(() => { // a field that the server has replaced is not one that was left
            if (field.isConnected && current && current.field === field) current = null;
        }, 0);
    });

    function heard(grid) { // the server has sent the grid anew
        const folder = grid.dataset.lkFolder;
        for (const [name, number] of JSON.parse(grid.dataset.lkSaved || "[]")) {
            for (const [place, one] of typed) {
                if (one.name === name && one.n === number) typed.delete(place);
            }
        }
        for (const field of grid.querySelectorAll("[data-lk-caption]")) {
            const one = typed.get(key(folder, field.dataset.lkCaption));
            if (one) { // typed on meanwhile, or refused: it stays, now against what the file says
                one.was = field.dataset.lkWas;
                if (field.value !== one.text) field.value = one.text;
            } else if (field.value !== field.defaultValue) { // gradio 6 keeps the field and changes its text only
                field.value = field.defaultValue;
            }
            show(field, Boolean(one));
            if (current && current.name === field.dataset.lkCaption && !current.field.isConnected) {
                field.focus({preventScroll: true});
                field.setSelectionRange(current.start, current.end);
            }
        }
        send();
    }

    function follow() { // what is shown is of another folder than what is typed: ask for that one
        const place = byId("lorakit_folder"), field = place && place.querySelector("textarea, input");
        if (!field) return;
        const settled = field.value === lastTyped;
        lastTyped = field.value;
        if (!settled) return;
        const parts = Array.from(root().querySelectorAll("[data-lk-shows]"));
        for (const part of parts) {
            if (part.dataset.lkShows !== field.value) ask(part.dataset.lkStep + "_open", field.value);
        }
        // both steps show the same folder: then both shall show the same state of it
        const states = parts.filter((part) => part.dataset.lkState).map((part) => part.dataset.lkState);
        if (states.length === parts.length && new Set(states).size > 1) {
            for (const part of parts) ask(part.dataset.lkStep + "_sync", states.join("|"));
        }
    }

    function ask(button, why) { // once for each reason, and after a while again
        const now = Date.now();
        if (asked[button] && asked[button].why === why && now - asked[button].at < AGAIN_MS) return;
        asked[button] = {why, at: now};
        press(button);
    }

    function look() {
        const grid = root().querySelector("ul[data-lk-folder]");
        if (grid && grid.lorakitHeard !== grid.dataset.lkBeat) {
            grid.lorakitHeard = grid.dataset.lkBeat;
            heard(grid);
        }
        if (document.hidden) return;
        follow();
        for (const note of root().querySelectorAll("[data-lk-go-on]")) {
            if (note.offsetParent !== null) ask(note.dataset.lkGoOn, note.textContent);
        }
    }

    new MutationObserver(() => {
        const grid = root().querySelector("ul[data-lk-folder]");
        if (grid && grid.lorakitHeard !== grid.dataset.lkBeat) look();
    }).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ["data-lk-beat"]});

    window.addEventListener("beforeunload", (event) => {
        if (typed.size) {
            event.preventDefault();
            event.returnValue = "";
        }
    });

    window.lorakitCaptions = {typed: typed};
    setInterval(look, TICK_MS);
})();
