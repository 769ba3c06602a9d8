// The figures under the mouse (or, with the arrow keys, under the reader) in a plot.
(function () {
    if (window.lorakitPlot) return;
    window.lorakitPlot = true;
    let tip = null, mark = null, at = -1;

    function made(kind) {
        const element = document.createElement("div");
        element.className = "lorakit lk-" + kind;
        element.hidden = true;
        document.body.append(element);
        return element;
    }

    function rows(plot) {
        return plot.dataset.rows.split(";").map((row) => row.split(","));
    }

    function show(plot, place) {
        tip = tip || made("tip");
        mark = mark || made("mark");
        const all = rows(plot), names = plot.dataset.names.split(","), box = plot.getBoundingClientRect();
        at = Math.max(0, Math.min(place, all.length - 1));
        const [across, step, ...values] = all[at];
        const x = box.left + Number(across) * box.width;
        const lines = [["step", step], ...values.map((value, i) => [names[i], value])];
        tip.replaceChildren(...lines.map((line) => {
            const element = document.createElement("div"), word = document.createElement("span");
            word.textContent = line[0]; // a node of its own, so that it can be translated
            element.append(word, " ", line[1]);
            return element;
        }));
        tip.hidden = mark.hidden = false;
        mark.style.cssText = "left:" + x + "px;top:" + box.top + "px;height:" + box.height + "px";
        const left = x + 12 + tip.offsetWidth > innerWidth ? x - 12 - tip.offsetWidth : x + 12;
        tip.style.cssText = "left:" + left + "px;top:" + (box.top + 8) + "px";
    }

    function hide() {
        if (tip) tip.hidden = mark.hidden = true;
        at = -1;
    }

    function under(event) {
        return event.target.closest && event.target.closest("svg[data-rows]");
    }

    document.addEventListener("mousemove", (event) => {
        const plot = under(event);
        if (!plot) return at >= 0 && !document.activeElement.matches("svg[data-rows]") ? hide() : undefined;
        const box = plot.getBoundingClientRect(), here = (event.clientX - box.left) / box.width;
        let best = 0, gap = 2;
        rows(plot).forEach((row, i) => {
            const away = Math.abs(Number(row[0]) - here);
            if (away < gap) [best, gap] = [i, away];
        });
        show(plot, best);
    });
    document.addEventListener("keydown", (event) => {
        const plot = under(event);
        if (!plot || (event.key !== "ArrowLeft" && event.key !== "ArrowRight")) return;
        event.preventDefault();
        const last = rows(plot).length - 1;
        show(plot, at < 0 ? last : at + (event.key === "ArrowLeft" ? -1 : 1));
    });
    document.addEventListener("focusout", (event) => { if (under(event)) hide(); });
    document.addEventListener("scroll", hide, true);
})();
