// Changes what is visible as one HTML differs from the next, and nothing else of it: see lorakit.js.
(function () {
    function keyOf(node) {
        return node.nodeType === Node.ELEMENT_NODE ? node.dataset.key : undefined;
    }

    // Change `live` as `was` changed to `now`. What translations, the reader or scripts did to `live` stays.
    function patch(live, was, now) {
        if (was.isEqualNode(now)) return live;
        if (was.nodeName !== now.nodeName || was.nodeType !== Node.ELEMENT_NODE || keyOf(was) !== keyOf(now)) {
            const fresh = document.importNode(now, true);
            live.replaceWith(fresh);
            return fresh;
        }
        for (const {name, value} of now.attributes) if (was.getAttribute(name) !== value) live.setAttribute(name, value);
        for (const {name} of was.attributes) if (!now.hasAttribute(name)) live.removeAttribute(name);
        children(live, was, now);
        return live;
    }

    // Change what is in `live` as what was in `was` changed to what is in `now`.
    function children(live, was, now) {
        const nodes = Array.from(live.childNodes), old = Array.from(was.childNodes);
        if (nodes.length !== old.length) { // somebody else changed it: begin anew
            live.replaceChildren(...Array.from(now.childNodes, (node) => document.importNode(node, true)));
            return;
        }
        const free = new Set(old.keys());
        const partner = Array.from(now.childNodes, (node) => {
            for (const i of free) {
                if (keyOf(old[i]) === keyOf(node) && old[i].nodeName === node.nodeName) {
                    free.delete(i);
                    return i;
                }
            }
            return -1;
        });
        for (const i of free) nodes[i].remove();
        partner.forEach((i, place) => {
            const node = now.childNodes[place];
            const made = i < 0 ? document.importNode(node, true) : patch(nodes[i], old[i], node);
            if (live.childNodes[place] !== made) live.insertBefore(made, live.childNodes[place] || null);
        });
    }

    function buttons(view) {
        return Array.from(view.querySelectorAll("button:not([disabled])"));
    }

    // The same for a whole view. What has the focus and goes, or can no longer be pressed, gives it to one beside it.
    function patchView(view, was, now) {
        const held = view.contains(document.activeElement) ? document.activeElement : null;
        const place = held ? buttons(view).indexOf(held) : -1;
        children(view, was, now);
        if (!held || (held.isConnected && !held.disabled)) return;
        const left = buttons(view), near = left.find((one) => one.parentElement === held.parentElement);
        const next = near || left[Math.max(0, Math.min(place, left.length - 1))] || view;
        if (next === view) view.tabIndex = -1;
        next.focus({preventScroll: true});
    }

    window.lorakitPatch = patchView;
})();
