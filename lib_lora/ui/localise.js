// What the webui does by itself, for the page of our own: texts, titles and placeholders that the dictionary knows are
// replaced where they stand, also in what is drawn later. What somebody typed and what numbers say stays.
(function (dictionaries) {
    const languages = new URLSearchParams(location.search).getAll("language").concat(navigator.languages || []);
    const names = Object.keys(dictionaries);
    const same = (name, asked) => name.split("_")[0].toLowerCase() === asked.split(/[-_]/)[0].toLowerCase();
    let words = null;
    for (const asked of languages) {
        if (same("en", asked)) return;
        const name = names.find((one) => same(one, asked));
        if (name) {
            words = dictionaries[name];
            document.documentElement.lang = name.replace("_", "-");
            break;
        }
    }
    if (!words) return;
    window.localization = words; // where scripts look, here as in the webui, for what is not written on the page
    const known = (text) => (Object.prototype.hasOwnProperty.call(words, text.trim()) ? words[text.trim()] : null);

    function text(node) {
        const parent = node.parentElement;
        if (!parent || parent.closest("script, style, textarea, code, pre, .notranslate")) return;
        const found = known(node.data);
        if (found !== null && found !== node.data) node.data = found;
    }

    function element(node) {
        for (const name of ["title", "placeholder", "aria-label"]) {
            const found = node.hasAttribute && node.hasAttribute(name) ? known(node.getAttribute(name)) : null;
            if (found !== null && found !== node.getAttribute(name)) node.setAttribute(name, found);
        }
    }

    function all(root) {
        if (root.nodeType === Node.TEXT_NODE) return text(root);
        if (root.nodeType !== Node.ELEMENT_NODE) return;
        element(root);
        root.querySelectorAll("[title], [placeholder], [aria-label]").forEach(element);
        const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        for (let node = walk.nextNode(); node; node = walk.nextNode()) text(node);
    }

    all(document.body);
    new MutationObserver((changes) => {
        for (const change of changes) {
            if (change.type === "characterData") text(change.target);
            else if (change.type === "attributes") element(change.target);
            else change.addedNodes.forEach(all);
        }
    }).observe(document.body, {
        childList: true, characterData: true, subtree: true, attributes: true,
        attributeFilter: ["title", "placeholder", "aria-label"],
    });
})
