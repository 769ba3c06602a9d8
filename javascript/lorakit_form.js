// The form of the Train page: keeps the fields of Advanced and the rows of concepts in step with one hidden text field
// that gradio sends, searches, marks what was changed, and goes to a field that a message is about.
(function () {
    if (window.lorakitForm) return;
    const TICK_MS = 300, SETTLE_MS = 600, IDLE_MS = 10000, FLAG_MS = 4000;
    let state = null, text = "", hints = {}, hintsText = "", told = "";
    let restored = 0, lookAt = 0, looked = 0, opened = null;

    const byId = id => document.getElementById(id);
    const box = id => document.querySelector("#" + id + " textarea, #" + id + " input");
    const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
    const settings = () => byId("lorakit_settings");

    function put(id, value) { // as if it were typed
        const field = box(id);
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
    function read() {
        const field = box("lorakit_form_state");
        if (!field || field.value === text) return;
        try {
            state = JSON.parse(field.value);
        } catch (error) {
            return;
        }
        text = field.value;
        show();
        soon();
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
        filter();
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
        filter();
    }

    function pieces(why) { // words and values as nodes of their own, so that the words can be translated
        return (why || []).flatMap(([text, value]) => {
            const element = document.createElement("span");
            element.textContent = text;
            if (value) element.className = "notranslate";
            return [element, " "];
        });
    }

    // ---- search
    function filter() {
        const root = settings(), find = byId("lorakit_find");
        if (!root || !find) return;
        const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
        const every = root.querySelector("[data-lk='all']").checked;
        let found = 0;
        for (const section of all("details.lkf-section", root)) {
            let shown = 0;
            for (const field of all(".lkf-field", section)) {
                const fits = words.every(word => field.dataset.words.includes(word));
                const idle = field.classList.contains("lkf-muted") && !field.classList.contains("lkf-changed");
                field.hidden = words.length ? !fits : idle && !every;
                if (!field.hidden) shown += 1;
            }
            section.hidden = !shown;
            if (words.length && shown) section.open = true;
            found += shown;
        }
        for (const pointer of all(".lkf-pointer", root)) {
            pointer.hidden = !words.length || !words.every(word => pointer.dataset.words.includes(word));
            if (!pointer.hidden) found += 1;
        }
        root.querySelector(".lkf-none").hidden = found > 0 || !words.length;
    }

    function searched() {
        const sections = all("details.lkf-section", settings());
        if (byId("lorakit_find").value && opened === null) opened = sections.map(section => section.open);
        if (!byId("lorakit_find").value && opened !== null) {
            sections.forEach((section, number) => { section.open = opened[number]; });
            opened = null;
        }
        filter();
    }

    function goTo(key) {
        const field = document.querySelector(".lkf-field[data-key='" + key + "']");
        const target = field || byId(document.querySelector("[data-lk-for='" + key + "']")?.dataset.lkGo || "");
        if (!target) return;
        if (field) field.hidden = false;
        for (let parent = target.parentElement; parent; parent = parent.parentElement) {
            if (parent.matches("details")) {
                parent.open = true;
                parent.hidden = false;
            }
        }
        focus(target);
    }

    function focus(target) {
        target.scrollIntoView({block: "center", behavior: "smooth"});
        const input = target.querySelector("textarea, input, select");
        if (input) input.focus({preventScroll: true});
        target.classList.add("lkf-flag");
        setTimeout(() => target.classList.remove("lkf-flag"), FLAG_MS);
    }

    // A message that is about a field has its name with it. The mark stands beside the text, in the same element.
    function readMessages() {
        const marks = all("#lorakit_form [data-lk-field]").map(one => one.dataset.lkField + one.parentElement.textContent);
        const now = marks.join("\n");
        if (now === told) return;
        const fresh = all("#lorakit_form [data-lk-field]").find(
            one => !told.includes(one.dataset.lkField + one.parentElement.textContent));
        told = now;
        if (fresh) goTo(fresh.dataset.lkField);
    }

    // ---- what people do
    function edited(event) {
        const field = event.target;
        if (field.id === "lorakit_find") return searched();
        if (field.dataset.lk === "all") return filter();
        if (field.dataset.lkLoad) return load(field);
        if (!state) return;
        if (field.dataset.lkKey) {
            state.values[field.dataset.lkKey] = field.type === "checkbox" ? field.checked : field.value;
            write();
        } else if (field.dataset.lkConcept) {
            state.concepts[+field.closest("fieldset").dataset.row][field.dataset.lkConcept] = field.value;
            write();
        } else if (field.closest("#lorakit_form, #lorakit_folder")) {
            const own = field.closest("#lorakit_form_state, #lorakit_form_hints, #lorakit_toml");
            if (!own) {
                told = "";
                soon();
            }
        }
    }

    function clicked(event) {
        const button = event.target.closest("button, label");
        if (!button || !button.closest("#lorakit_form")) return;
        const data = button.dataset;
        if (button.id === "lorakit_start" || button.id === "lorakit_queue") told = "";
        if (data.lkPut) put(data.lkPut, data.value);
        if (data.lkGo) focus(byId(data.lkGo));
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
        }
    }

    function keyed(event) {
        const field = event.target;
        if (field.id === "lorakit_find" && event.key === "Escape") {
            field.value = "";
            searched();
        } else if (field.id === "lorakit_find" && event.key === "Enter") {
            event.preventDefault();
            const first = all(".lkf-field, .lkf-pointer", settings()).find(one => !one.hidden && one.offsetParent);
            if (first) (first.matches("button") ? first : first.querySelector("textarea, input, select")).focus();
        } else if (event.key === "Enter" && field.matches("textarea[data-lk-key], textarea[data-lk-concept]")
                   && !field.dataset.lines) {
            event.preventDefault();
        }
    }

    function save(id) {
        const name = (box("lorakit_name") || {}).value || "job", link = document.createElement("a");
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

    function tick() {
        const form = byId("lorakit_form");
        if (!form || form.offsetParent === null || document.hidden || !box("lorakit_form_state")) return;
        const now = Date.now();
        if (!restored) {
            restored = now;
            lookAt = now + 2 * SETTLE_MS;
            press("lorakit_form_restore");
        }
        read();
        readHints();
        readMessages();
        if ((lookAt && now >= lookAt) || now - looked > IDLE_MS) {
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
