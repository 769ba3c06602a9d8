// The search in Advanced, and going to the field of a setting: see lorakit_form.js.
(function () {
    if (window.lorakitFind) return;
    const FLAG_MS = 4000;
    let opened = null; // which sections were open before the search

    const byId = id => document.getElementById(id);
    const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
    const settings = () => byId("lorakit_settings");

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

    function edited(event) {
        if (event.target.id === "lorakit_find") searched();
        else if (event.target.dataset.lk === "all") filter();
    }

    function keyed(event) {
        const field = event.target;
        if (field.id !== "lorakit_find") return;
        if (event.key === "Escape") {
            field.value = "";
            searched();
        } else if (event.key === "Enter") {
            event.preventDefault();
            const first = all(".lkf-field, .lkf-pointer", settings()).find(one => !one.hidden && one.offsetParent);
            if (first) (first.matches("button") ? first : first.querySelector("textarea, input, select")).focus();
        }
    }

    document.addEventListener("input", edited);
    document.addEventListener("change", edited);
    document.addEventListener("keydown", keyed);
    window.lorakitFind = {filter, goTo, focus};
})();
