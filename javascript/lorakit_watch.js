// What is told outside of the Train tab: a line above the Generate buttons, the share in the page's title, and a
// notification when a run ends. All of it is read from the data attributes of the progress.
(function () {
    if (window.lorakitWatch) return;
    window.lorakitWatch = true;
    const ENDS = {finished: "Training has finished", failed: "Training failed", interrupted: "Training was interrupted"};
    const ASKING = "#lorakit_start, .lk-asks-notice";
    const PLACES = ["#txt2img_actions_column", "#img2img_actions_column", "#lorakit_generate"];
    let before = null, front = "", watched = ""; // front: what we have put before the page's own title

    function say(text) { // in the page's language: a notification is no text node that would be translated
        return (window.localization || {})[text] || text;
    }

    function span(text, number) {
        const element = document.createElement("span");
        element.textContent = text;
        if (number) element.className = "lk-number";
        return element;
    }

    // Words and figures are nodes of their own, so that the words can be translated.
    function banner(facts) {
        const element = document.createElement("div");
        element.className = "lorakit lk-banner";
        element.setAttribute("role", "status");
        const line = document.createElement("p");
        line.append(span("LoRA kit is training"), " ", span(facts.name, true), ": ");
        if (Number(facts.total)) {
            line.append(span("step"), " ", span(facts.step, true), " ", span("of"), " ", span(facts.total, true));
        } else {
            line.append(span("preparing"));
        }
        if (facts.left) line.append(", ", span("time left:"), " ", span(facts.left, true));
        line.append("; ", span("pictures wait until it ends."));
        const pause = document.createElement("button");
        pause.type = "button";
        pause.className = "lk-button";
        pause.textContent = "Pause training";
        pause.addEventListener("click", () => {
            pause.disabled = true;
            window.lorakit.act("running", {do: "pause"});
        });
        element.append(line, pause);
        return element;
    }

    function banners(facts) {
        const training = facts && facts.state === "running";
        const said = training ? [facts.name, facts.step, facts.total, facts.left].join("|") : "";
        for (const selector of PLACES) {
            const place = document.querySelector(selector);
            if (!place) continue;
            const inside = selector !== "#lorakit_generate";
            const home = inside ? place : place.parentElement;
            const old = home.querySelector(":scope > .lk-banner");
            if (old && old.lkSaid === said) continue;
            if (old && training) { // only the line changes: the button keeps the focus
                old.firstElementChild.replaceWith(banner(facts).firstElementChild);
                old.lkSaid = said;
                continue;
            }
            if (old) old.remove();
            if (training) {
                const fresh = banner(facts);
                fresh.lkSaid = said;
                home.insertBefore(fresh, inside ? home.firstChild : place);
            }
        }
    }

    function title(facts) {
        const bare = document.title.startsWith(front) ? document.title.slice(front.length) : document.title;
        const training = facts && facts.state === "running";
        front = training ? facts.percent + " % \u00b7 " + facts.name.replace(/\s+/g, " ") + " \u2013 " : "";
        if (document.title !== front + bare) document.title = front + bare;
    }

    // The run that was seen training, if it has ended since. The next of the queue may have begun meanwhile: then the
    // server is asked what became of the one before.
    function ended(facts) {
        const was = before;
        before = facts ? {id: facts.id, state: facts.state} : null;
        if (!was || !facts || was.state !== "running") return facts ? asked(facts) : null;
        if (was.id === facts.id) return facts.state in ENDS ? facts : asked(facts);
        watched = was.id;
        window.lorakit.panel("running").view.watched = watched;
        window.lorakit.ask("running");
        return facts.state in ENDS ? facts : null; // the next one may be over as well
    }

    function asked(facts) { // what became of the run that was asked for
        const told = watched && facts.ended ? JSON.parse(facts.ended) : null;
        if (!told || told.id !== watched) return null;
        watched = "";
        delete window.lorakit.panel("running").view.watched;
        return told.state in ENDS ? told : null;
    }

    // The webui's cards show new files when somebody presses their Refresh: one for each page since 1.8, one for all before.
    function cards() {
        for (const tab of ["txt2img", "img2img"]) {
            for (const page of ["_lora_extra_refresh_internal", "_textual_inversion_extra_refresh_internal", "_extra_refresh"]) {
                const button = document.getElementById(tab + page);
                if (button && button.tagName === "BUTTON") button.click();
            }
        }
    }

    function notify(facts) {
        if (!("Notification" in window) || Notification.permission !== "granted") return;
        try {
            const note = new Notification(say(ENDS[facts.state]) + ": " + facts.name, {
                body: facts.state === "finished" ? facts.step + " " + say("steps") : facts.doing, tag: "lorakit-" + facts.id,
            });
            note.onclick = () => {
                window.focus();
                note.close();
            };
        } catch (error) {
            console.info("LoRA kit: no notification,", error.message); // phones want a service worker
        }
    }

    function update() {
        const root = window.lorakit && window.lorakit.root(), facts = root ? Object.assign({}, root.dataset) : null;
        banners(facts);
        title(facts);
        const over = ended(facts);
        if (!over) return;
        notify(over);
        if (over.state !== "finished") return;
        cards();
        const results = document.getElementById("lorakit_results");
        if (results && !results.contains(document.activeElement)) { // what has finished, not what was looked at before
            window.lorakit.look("after", {run: "", grid: ""}, true);
        }
    }

    document.addEventListener("click", (event) => {
        if (!event.target.closest || !event.target.closest(ASKING) || !("Notification" in window)) return;
        if (Notification.permission === "default") Notification.requestPermission();
    }, true);
    document.addEventListener("lorakit", (event) => { if (event.detail === "progress") update(); });
    setInterval(update, 3000); // the webui writes its own title, and rebuilds parts of the page
})();
