// The webui translates texts wherever they appear, but titles and placeholders only of gradio's own components. Those
// within our HTML are translated here, by the same dictionary.
(function () {
    if (window.lorakitWords) return;
    const NAMES = ["title", "placeholder", "aria-label"], PAUSE_MS = 200;
    const MARKED = NAMES.map((name) => ".lorakit [" + name + "]").join(", ");
    let timer = null;

    function translate() {
        timer = null;
        const words = window.localization || {};
        for (const element of document.querySelectorAll(MARKED)) {
            if (element.closest(".notranslate")) continue;
            for (const name of NAMES) {
                const said = element.getAttribute(name);
                const known = said && Object.prototype.hasOwnProperty.call(words, said) && words[said];
                if (known && known !== said) element.setAttribute(name, known);
            }
        }
    }

    window.lorakitWords = new MutationObserver(() => {
        if (timer === null) timer = setTimeout(translate, PAUSE_MS);
    });
    window.lorakitWords.observe(document.documentElement, {childList: true, subtree: true, attributeFilter: NAMES});
    translate();
})();
