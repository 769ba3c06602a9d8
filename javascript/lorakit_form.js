// The form of the Train page: keeps the fields of Advanced and the rows of concepts in step with one hidden text field
// that gradio sends, marks what was changed, and goes to a field that a message is about.
(function () {
    if (window.lorakitForm) return;
    const TICK_MS = 300, SETTLE_MS = 600, IDLE_MS = 10000, AGAIN_MS = 8000;
    const ANSWERED_MS = 1500, TYPED = "textarea, select, input:not([type=radio]):not([type=checkbox]):not([type=range])";
    const early = new Map(); // what was typed before the server said what was remembered: by element, its value
    let state = null, text = "", hints = {}, hintsText = "", told = "", again = 0;
    let asked = 0, lookAt = 0, looked = 0;

    const byId = id => document.getElementById(id);
    const box = id => document.querySelector("#" + id + " textarea, #" + id + " input");
    const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
    const settings = () => byId("lorakit_settings");

    function put(id, value) {
        enter(box(id), value);
    }

    function enter(field, value) { // as if it were typed
        if (!field || field.value === value) return;
        const kind = field instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
        Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, value);
        field.dispatchEvent(new Event("input", {bubbles: true}));
        field.dispatchEvent(new Event("change", {bubbles: true}));
    }

    function press(id) {
        const found = byId(id);
        const button = found && (found.matches("button") ? found : found.querySelector("button"));
        if (button) button.click();
    }

    function soon() {
        lookAt = Date.now() + SETTLE_MS;
    }

    // ---- between the hidden text and the fields
    const restored = () => !!state && state.restored === true;

    function read() {
        const field = box("lorakit_form_state"), waited = !restored();
        if (!field || field.value === text) return;
        try {
            state = JSON.parse(field.value);
        } catch (error) {
            return;
        }
        text = field.value;
        show();
        soon();
        if (waited && restored()) setTimeout(typeAgain, 0); // gradio sets the other fields of the same answer first
    }

    function typeAgain() {
        const typed = Array.from(early);
        early.clear();
        for (const [field, value] of typed) {
            if (field.type === "radio") field.click();
            else if (field.type === "checkbox") field.checked = value;
            else if (field.tagName === "SELECT") field.value = value; // its setter is not that of an <input>
            else enter(field, value);
            if (field.dataset.lkKey) take(field);
        }
    }

    function take(field) {
        state.values[field.dataset.lkKey] = field.type === "checkbox" ? field.checked : field.value;
        write();
    }

    function write() {
        text = JSON.stringify(state);
        put("lorakit_form_state", text);
        mark();
        soon();
    }

    function show() {
        for (const field of all("[data-lk-key]")) {
            const value = state.values[field.dataset.lkKey];
            if (value === undefined) continue;
            if (field.type === "checkbox") field.checked = value === true;
            else if (field.value !== value) field.value = value;
        }
        showConcepts();
        mark();
    }

    function showConcepts() {
        all("#lorakit_concepts fieldset").forEach((row, number) => {
            const values = state.concepts[number];
            row.hidden = !values;
            for (const field of all("[data-lk-concept]", row)) {
                const value = values ? values[field.dataset.lkConcept] || "" : "";
                if (field.value !== value) field.value = value;
            }
        });
        const add = document.querySelector("[data-lk='add-concept']");
        if (add) add.hidden = state.concepts.length >= all("#lorakit_concepts fieldset").length;
    }

    function mark() {
        if (!state || !settings()) return;
        let total = 0;
        for (const section of all("details.lkf-section")) {
            let count = 0;
            for (const field of all(".lkf-field", section)) {
                const key = field.dataset.key, changed = state.values[key] !== state.start[key];
                field.classList.toggle("lkf-changed", changed);
                if (changed) count += 1;
            }
            const told = section.querySelector("summary .lkf-changes");
            told.hidden = !count;
            told.querySelector("b").textContent = count;
            total += count;
        }
        settings().querySelector("[data-lk='changes']").textContent = total;
        settings().querySelector("[data-lk='reset']").disabled = !total;
        window.lorakitFind.filter();
    }

    function readHints() {
        const field = box("lorakit_form_hints");
        if (!field || field.value === hintsText) return;
        hintsText = field.value;
        try {
            hints = JSON.parse(hintsText);
        } catch (error) {
            hints = {};
        }
        const rows = byId("lorakit_concepts");
        if (rows) rows.hidden = !hints.several;
        for (const field of all(".lkf-field[data-key]")) {
            const why = (hints.muted || {})[field.dataset.key], line = field.querySelector(".lkf-why");
            field.classList.toggle("lkf-muted", !!why);
            field.classList.toggle("lkf-wrong", field.dataset.key === hints.bad);
            line.replaceChildren(...pieces(why));
            line.hidden = !why;
        }
        window.lorakitFind.filter();
    }

    function pieces(why) { // words and values as nodes of their own, so that the words can be translated
        return (why || []).flatMap(([text, value]) => {
            const element = document.createElement("span");
            element.textContent = text;
            if (value) element.className = "notranslate";
            return [element, " "];
        });
    }

    // A message that is about a field has its name with it. The mark stands beside the text, in the same element.
    // Whoever is typing meanwhile is left where they are.
    function readMessages() {
        const marks = all("#lorakit_form [data-lk-field]");
        const said = one => one.dataset.lkField + one.parentElement.textContent;
        const same = again && Date.now() > again; // Train was pressed, and what it says may be what it said before
        const fresh = marks.find(one => !told.includes(said(one)) || (same && one.closest("#lorakit_message")));
        told = marks.map(said).join("\n");
        if (same) again = 0;
        if (fresh && !document.activeElement.matches(TYPED)) window.lorakitFind.goTo(fresh.dataset.lkField);
    }

    // ---- what people do
    function edited(event) {
        const field = event.target;
        if (field.dataset.lkLoad) return load(field);
        if (event.isTrusted && !restored() && field.closest("#lorakit_form, #lorakit_folder")) {
            early.delete(field); // in the order of what was done last: of radios the last one counts
            early.set(field, field.type === "checkbox" ? field.checked : field.value);
        }
        if (!state) return;
        if (field.dataset.lkKey) {
            take(field);
        } else if (field.dataset.lkConcept) {
            state.concepts[+field.closest("fieldset").dataset.row][field.dataset.lkConcept] = field.value;
            write();
        } else if (field.closest("#lorakit_form, #lorakit_folder")) {
            const own = field.closest("#lorakit_form_state, #lorakit_form_hints, #lorakit_toml");
            if (!own) soon();
        }
    }

    function clicked(event) {
        const button = event.target.closest("button, label");
        if (!button || !button.closest("#lorakit_form")) return;
        const data = button.dataset;
        if (button.id === "lorakit_start" || button.id === "lorakit_queue") again = Date.now() + ANSWERED_MS;
        if (data.lkPut) put(data.lkPut, data.value);
        if (data.lkGo) window.lorakitFind.focus(byId(data.lkGo));
        if (data.lkSave) save(data.lkSave);
        if (!state) return;
        if (data.lk === "reset") {
            for (const key of Object.keys(state.values)) state.values[key] = state.start[key];
            show();
            write();
        } else if (data.lk === "add-concept") {
            state.concepts.push({});
            showConcepts();
            write();
            all("#lorakit_concepts fieldset")[state.concepts.length - 1].querySelector("textarea").focus();
        } else if (data.lk === "remove-concept") {
            state.concepts.splice(+button.closest("fieldset").dataset.row, 1);
            showConcepts();
            write();
            if (button.offsetParent === null) document.querySelector("[data-lk='add-concept']").focus();
        }
    }

    function keyed(event) {
        const field = event.target;
        if (event.key === "Enter" && field.matches("textarea[data-lk-key], textarea[data-lk-concept]")
                   && !field.dataset.lines) {
            event.preventDefault();
        }
    }

    function save(id) {
        const said = (box("lorakit_name") || {}).value || "", link = document.createElement("a");
        const name = said.replace(/[^\p{L}\p{N}._-]/gu, "-").replace(/^[.-]+|[.-]+$/g, "") || "job"; // as the commands say it
        link.href = URL.createObjectURL(new Blob([box(id).value], {type: "application/toml"}));
        link.download = name + ".toml";
        link.click();
        URL.revokeObjectURL(link.href);
    }

    function load(field) {
        const file = field.files[0];
        if (!file) return;
        file.text().then(content => put(field.dataset.lkLoad, content));
        field.value = "";
    }

    function naming() { // somebody emptied the name to type another: what is proposed would stand before it
        const name = box("lorakit_name");
        return !!name && name === document.activeElement && !name.value.trim();
    }

    function tick() {
        const form = byId("lorakit_form");
        if (!form || form.offsetParent === null || document.hidden || !box("lorakit_form_state")) return;
        const now = Date.now();
        read();
        readHints();
        readMessages();
        if (!restored()) { // a look would propose what is proposed to newcomers
            if (now - asked > AGAIN_MS) {
                asked = now;
                press("lorakit_form_restore");
            }
        } else if (!naming() && ((lookAt && now >= lookAt) || now - looked > IDLE_MS)) {
            lookAt = 0;
            looked = now;
            press("lorakit_form_look");
        }
    }

    document.addEventListener("input", edited);
    document.addEventListener("change", event => { if (event.target.type !== "checkbox") edited(event); });
    document.addEventListener("click", clicked);
    document.addEventListener("keydown", keyed);
    window.lorakitForm = setInterval(tick, TICK_MS);
})();
