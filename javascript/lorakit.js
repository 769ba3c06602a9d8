// Keeps the page as the server has it (see lib_lora/ui/live.py): presses a panel's hidden button to ask, and patches
// what comes back into what is visible. Works with gradio's queue on or off, after a reload and a lost connection.
(function () {
    if (window.lorakit) return;
    const RUNNING_MS = 1500, IDLE_MS = 6000, ASIDE_MS = 3000, ASIDE_IDLE_MS = 15000, HIDDEN_MS = 10000, PROBE_MS = 3000;
    const OTHERS_MS = 30000, SETTLED_MS = 4000, ANSWER_MS = 6000, GIVE_UP_MS = 60000, TICK_MS = 500;
    const QUICK_MS = 60, STARTING_MS = 10000;
    const panels = {};
    let lost = false, probing = false, probed = 0, quick = null, rev = "", starts = 0;

    function panel(name) {
        if (!panels[name]) {
            panels[name] = {beat: 0, sent: 0, answered: 0, waiting: false, acted: Infinity, todo: [], view: kept(name)};
        }
        return panels[name];
    }

    function kept(name) {
        try {
            return JSON.parse(sessionStorage.getItem("lorakit_" + name)) || {};
        } catch (error) {
            return {};
        }
    }

    function buttonOf(name) {
        return document.getElementById(name === "running" ? "lorakit_refresh" : "lorakit_" + name + "_refresh");
    }

    function sources() {
        return document.querySelectorAll("[data-lk-region]");
    }

    function root() {
        return document.querySelector("#lorakit_progress .lk-progress");
    }

    // ---- asking
    function request(name) { // called by gradio when the hidden button is pressed; what it sends
        const one = panel(name), seen = {};
        for (const source of sources()) {
            if (source.dataset.lkPanel === name) seen[source.dataset.lkRegion] = source.dataset.lkMark;
        }
        one.beat += 1;
        return JSON.stringify({beat: one.beat, seen: seen, view: one.view, do: one.todo.shift() || {}});
    }

    function ask(name) {
        const button = buttonOf(name), one = panel(name);
        if (!button) return;
        if (!one.waiting) one.since = Date.now();
        one.waiting = true;
        one.sent = Date.now();
        button.click();
        hurry();
    }

    function act(name, what) {
        const one = panel(name);
        one.todo.push(what);
        one.acted = one.beat + 1;
        ask(name);
    }

    function rest(name) { // what was done in one panel may show in the others
        panel(name).acted = Infinity;
        for (const other of names()) if (other !== name) ask(other);
    }

    function names() {
        return new Set(Array.from(sources(), (source) => source.dataset.lkPanel));
    }

    function look(name, what, keep) { // change what a panel looks at
        const one = panel(name);
        one.view = Object.assign({}, one.view, what);
        if (keep) {
            try {
                sessionStorage.setItem("lorakit_" + name, JSON.stringify(one.view));
            } catch (error) { /* private windows have none: then a reload forgets it */ }
        }
        ask(name);
    }

    function heard() { // which questions have been answered
        for (const beat of document.querySelectorAll("[data-lk-beat]")) {
            const one = panel(beat.dataset.lkPanel), number = Number(beat.dataset.lkBeat);
            if (number && number !== one.heard) {
                one.heard = number;
                one.answered = Date.now();
                if (number >= one.beat) one.waiting = false;
                if (number >= one.acted) rest(beat.dataset.lkPanel);
                if (lost) tellLost(false);
            }
        }
    }

    function due() {
        const one = panel("running"), progress = root(), now = Date.now();
        if (!buttonOf("running")) return;
        if (one.waiting) {
            if (now - one.sent > ANSWER_MS) probe();
            if (now - one.sent > GIVE_UP_MS) one.waiting = false;
            return;
        }
        if (window.lorakitBusy) starts = now + STARTING_MS; // the answer may be of before the start: ask on
        window.lorakitBusy = false;
        const running = now < starts || (progress && progress.dataset.state === "running");
        const seen = progress && progress.offsetParent !== null;
        let pause = running ? (seen ? RUNNING_MS : ASIDE_MS) : (seen ? IDLE_MS : ASIDE_IDLE_MS);
        if (document.hidden) pause = Math.max(pause, HIDDEN_MS);
        if (now - one.sent < pause) return;
        ask("running");
    }

    function others() { // panels that are busy by themselves, or that a change of the job concerns
        const progress = root();
        const now = progress ? ["state", "id", "waiting"].map((name) => progress.dataset[name]).join("|") : "";
        const changed = now !== rev;
        rev = now;
        const told = document.querySelector('[data-lk-view="told"]'), old = told && told.lkMark;
        if (changed) setTimeout(() => settle(told, old), SETTLED_MS);
        for (const name of names()) {
            const one = panel(name);
            if (name === "running") continue;
            one.stale = one.stale || changed;
            if (one.waiting && Date.now() - one.sent < ANSWER_MS) continue;
            const busy = document.querySelector('[data-lk-busy="' + name + '"]');
            const pause = busy ? RUNNING_MS : document.hidden || !progress || !progress.offsetParent ? Infinity : OTHERS_MS;
            if (!one.stale && Date.now() - one.sent < pause) continue;
            one.stale = false;
            ask(name);
        }
    }

    function settle(view, old) { // some time after a change: what was told is old news, and folders are written by now
        for (const name of names()) panel(name).stale = true;
        const source = document.querySelector('[data-lk-region="told"]');
        if (!source || !view || view.lkMark !== old || view.querySelector(".lk-bad")) return;
        source.dataset.lkMark = view.lkMark = "";
        view.replaceChildren();
    }

    // An answer is overdue. A dead connection is told, and no question is asked in it: gradio would complain of each.
    function probe() {
        if (probing || Date.now() - probed < PROBE_MS) return;
        probing = true;
        probed = Date.now();
        const stop = new AbortController();
        const timer = setTimeout(() => stop.abort(), PROBE_MS * 2);
        fetch(location.pathname, {method: "HEAD", cache: "no-store", signal: stop.signal}).then(() => {
            if (lost) {
                tellLost(false);
                for (const one of Object.values(panels)) one.waiting = false;
                ask("running");
            }
        }, () => tellLost(true)).finally(() => {
            clearTimeout(timer);
            probing = false;
        });
    }

    function tellLost(is) {
        lost = is;
        let note = document.getElementById("lorakit_lost");
        if (is && !note) {
            const place = document.getElementById("lorakit_progress");
            if (!place) return;
            note = document.createElement("div");
            note.id = "lorakit_lost";
            note.className = "lk-message lk-bad";
            note.setAttribute("role", "alert");
            for (const text of ["Connection lost, trying again.", "Training goes on by itself."]) {
                const span = document.createElement("span");
                span.textContent = text;
                note.append(span, " ");
            }
            place.parentElement.insertBefore(note, place);
        } else if (!is && note) {
            note.remove();
        }
    }

    // ---- showing
    function sync() {
        if (!window.lorakitPatch) return; // lorakit_patch.js is on its way
        for (const source of sources()) {
            const view = document.querySelector('[data-lk-view="' + source.dataset.lkRegion + '"]');
            if (!view || view.lkMark === source.dataset.lkMark) continue;
            const parsed = document.createElement("template");
            parsed.innerHTML = source.textContent; // our own HTML, in which the server has escaped what users wrote
            const away = Array.from(view.querySelectorAll(".lk-lines, .lk-pics")).filter((one) => !atEnd(one));
            if (view.lkFrom) {
                window.lorakitPatch(view, view.lkFrom, parsed.content);
            } else {
                view.replaceChildren(document.importNode(parsed.content, true));
            }
            view.lkFrom = parsed.content;
            view.lkMark = source.dataset.lkMark;
            for (const one of view.querySelectorAll(".lk-lines, .lk-pics")) {
                if (!away.includes(one)) one.scrollTo(one.scrollWidth, one.scrollHeight); // the newest is in sight
            }
            const told = view.querySelector(".lk-message");
            if (told && source.dataset.lkRegion.endsWith("told")) told.scrollIntoView({block: "nearest"});
            document.dispatchEvent(new CustomEvent("lorakit", {detail: source.dataset.lkRegion}));
        }
    }

    function atEnd(one) { // scrolled to its end, or not seen yet
        return one.scrollTop + one.clientHeight > one.scrollHeight - 8 && one.scrollLeft + one.clientWidth > one.scrollWidth - 8;
    }

    function hurry() { // look often until the answer is here
        if (quick) return;
        quick = setInterval(() => {
            heard();
            sync();
            const slow = Object.values(panels).every((one) => !one.waiting || Date.now() - one.sent > ANSWER_MS);
            if (slow) {
                clearInterval(quick);
                quick = null;
            }
        }, QUICK_MS);
    }

    function tick() {
        heard();
        sync();
        if (lost) {
            probe();
        } else {
            due();
            others();
        }
    }

    // ---- pressing
    function panelOf(element) {
        if (element.dataset.panel) return element.dataset.panel;
        const view = element.closest("[data-lk-view]");
        const source = view && document.querySelector('[data-lk-region="' + view.dataset.lkView + '"]');
        return source ? source.dataset.lkPanel : "running";
    }

    function entered(element) { // the fields of the form around a button
        const form = element.closest("[data-form]"), found = {};
        if (!form) return found;
        for (const field of form.querySelectorAll("[name]")) {
            if (field.type === "checkbox") {
                found[field.name] = found[field.name] || [];
                if (field.checked) found[field.name].push(field.value);
            } else {
                found[field.name] = field.value;
            }
        }
        return found;
    }

    function pressed(event) {
        const button = event.target.closest && event.target.closest("[data-do], [data-set], [data-look], [data-close]");
        if (!button || button.disabled || !window.lorakitSure(button)) return;
        const name = panelOf(button);
        if (button.dataset.do) act(name, Object.assign({fields: entered(button)}, JSON.parse(button.dataset.do)));
        if (button.dataset.set) look(name, JSON.parse(button.dataset.set), true);
        if (button.dataset.to) {
            const place = document.getElementById(button.dataset.to);
            if (place) place.scrollIntoView({block: "start"});
            const all = place ? Array.from(place.querySelectorAll("input:checked, textarea, button")) : [];
            const first = all.find((one) => one.offsetParent !== null && !one.disabled);
            if (first) first.focus({preventScroll: true}); // whoever uses keys goes on from there
        }
    }

    document.addEventListener("click", pressed);
    document.addEventListener("toggle", (event) => { // an opened log begins at its end
        for (const lines of event.target.querySelectorAll(".lk-lines")) lines.scrollTop = lines.scrollHeight;
    }, true);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
    window.lorakit = {request, ask, act, look, panel, root, entered};
    setInterval(tick, TICK_MS);
    tick();
})();
