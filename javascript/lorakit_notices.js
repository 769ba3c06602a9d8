// Takes back what a button was answered once it is old news. What went wrong stays longer, and what is being read stays.
(function () {
    if (window.lorakitNotices) return;
    window.lorakitNotices = true;
    const GOOD_S = 12, BAD_S = 120; // seconds in sight
    const told = {}; // region -> {left, stood}

    function view(region) {
        return document.querySelector('[data-lk-view="' + region + '"]');
    }

    function stands() {
        const root = window.lorakit && window.lorakit.root();
        return root ? root.dataset.state + "|" + root.dataset.id : "";
    }

    function take(region) {
        const shown = view(region), source = document.querySelector('[data-lk-region="' + region + '"]');
        delete told[region];
        if (!shown || !source) return;
        source.dataset.lkMark = shown.lkMark = "";
        shown.replaceChildren();
    }

    document.addEventListener("lorakit", (event) => {
        const region = event.detail;
        if (region.endsWith("told")) {
            const shown = view(region);
            if (!shown || !shown.textContent) return;
            told[region] = {left: shown.querySelector(".lk-bad") ? BAD_S : GOOD_S, stood: stands()};
        } else if (region === "progress" && told.told && told.told.stood !== stands()) {
            const shown = view("told"); // "Pausing after this step." is no news once it is paused
            if (shown && !shown.querySelector(".lk-bad")) take("told");
        }
    });
    function ofJobs() { // "Training rex." is no news once rex has been trained, nor that it waits once it does not
        const progress = window.lorakit && window.lorakit.root();
        const shown = document.querySelector("#lorakit_message [data-lk-job]");
        if (!progress || !shown || shown.hidden) return;
        const {id, state} = progress.dataset, own = id === shown.dataset.lkJob;
        const ends = shown.dataset.lkUntil === "ends";
        if (own) shown.lkSeen = true; // before that, what is shown of the job in hand is of the one before
        shown.hidden = ends ? (own ? state !== "running" : !!shown.lkSeen) : own;
    }

    setInterval(() => {
        if (document.hidden) return;
        ofJobs();
        for (const region of Object.keys(told)) {
            const shown = view(region);
            if (shown && (shown.matches(":hover") || shown.contains(document.activeElement))) continue;
            if (shown && shown.offsetParent) told[region].left -= 1;
            if (told[region].left <= 0) take(region);
        }
    }, 1000);
})();
