// Carries a tag to the prompt of txt2img (of Generate, on the page of our own), or to the clipboard.
(function () {
    if (window.lorakitGo) return;
    window.lorakitGo = true;
    const SHOWN_MS = 1000;
    const PROMPTS = ["#txt2img_prompt textarea", "#lorakit_prompt textarea"];

    function tabOf(field) { // the button of the tab that a field lies in
        if (typeof window.switch_to_txt2img === "function" && field.closest("#txt2img_prompt")) {
            return {click: () => window.switch_to_txt2img()};
        }
        const tab = field.closest(".tabitem");
        const labelled = tab && tab.getAttribute("aria-labelledby");
        const own = labelled && document.getElementById(labelled);
        if (own) return own;
        const first = document.querySelector(".lorakit-page .tab-nav button, .tab-nav button, [role=tab]");
        return first;
    }

    function withTag(prompt, tag) { // in place of the same network's tag, whose strength may be another
        const from = tag.startsWith("<") ? prompt.indexOf(tag.slice(0, tag.lastIndexOf(":") + 1)) : prompt.indexOf(tag);
        if (from < 0) return prompt + " " + tag;
        const to = tag.startsWith("<") ? prompt.indexOf(">", from) + 1 : from + tag.length;
        return prompt.slice(0, from) + tag + prompt.slice(to || prompt.length);
    }

    function send(tag, words) {
        const field = PROMPTS.map((one) => document.querySelector(one)).find(Boolean);
        if (!field) return;
        const now = field.value.trim();
        const then = withTag(now.includes(words) ? now : now + ", " + words, tag).replace(/^[,\s]+/, "");
        if (then !== now) {
            field.value = then;
            field.dispatchEvent(new Event("input", {bubbles: true}));
        }
        const tab = tabOf(field);
        if (tab) tab.click();
        focus(field, Date.now() + SHOWN_MS);
    }

    function focus(field, until) { // a tab shows its fields a moment after it was chosen
        field.focus();
        if (document.activeElement !== field && Date.now() < until) setTimeout(() => focus(field, until), 30);
    }

    async function copy(button) {
        const text = button.dataset.copy;
        try {
            await navigator.clipboard.writeText(text);
        } catch (error) { // not allowed, or no https: the old way
            const area = document.createElement("textarea");
            area.value = text;
            document.body.append(area);
            area.select();
            document.execCommand("copy");
            area.remove();
            button.focus();
        }
        button.classList.add("lk-done");
        setTimeout(() => button.classList.remove("lk-done"), 1500);
    }

    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest("[data-go], [data-copy]");
        if (!button || button.disabled) return;
        if (button.dataset.go) {
            const what = JSON.parse(button.dataset.go);
            send(what.tag, what.words);
        } else {
            copy(button);
        }
    });
})();
