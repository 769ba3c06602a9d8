"""The form's own HTML: every setting by section, searchable, and the table of concepts. Values are set by javascript.

Nothing in it comes from a user: it is made once, of the declarations.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from lib_lora.train.config import CONCEPT, fields
from lib_lora.train.sections_data import Concept
from lib_lora.train.settings import Setting, settings_of
from lib_lora.ui.aliases import ALIASES
from lib_lora.ui.fields import SECTIONS, label_of, text_of

# Settings that the form asks for at the top.
MAIN = ("data.folder", "data.trigger", "data.class_word", "output.name", "training.steps")
PLACES = {  # where the page asks for them: the element's id
    "data.folder": "lorakit_folder",
    "data.trigger": "lorakit_word",
    "data.class_word": "lorakit_class",
    "output.name": "lorakit_name",
    "training.steps": "lorakit_steps",
}
CONCEPTS = 8  # that the page shows; a job file may have more, which are kept


def advanced() -> str:
    """Search box, and each section's settings behind its title."""
    sections = "".join(_section(name, title) for name, title in SECTIONS.items())
    return (
        '<details class="lkf-advanced" id="lorakit_advanced"><summary><span>Advanced</span></summary>'
        '<div class="lkf-settings" id="lorakit_settings"><div class="lkf-find">'
        '<label class="lkf-search"><span>Search the settings</span><input type="search" id="lorakit_find" '
        'placeholder="name or words, also of kohya_ss and sd_dreambooth_extension" autocomplete="off"></label>'
        '<label class="lkf-switch"><input type="checkbox" data-lk="all">'
        "<span>Show settings without effect</span></label>"
        '<span class="lkf-changes" role="status"><b data-lk="changes">0</b> <span>changed</span></span>'
        '<button type="button" data-lk="reset"><span>Reset all</span></button></div>'
        '<p class="lkf-none" role="status" hidden>No setting is called like that.</p>'
        f'<div class="lkf-elsewhere">{_elsewhere()}</div>{sections}</div></details>'
    )


def concepts() -> str:
    """A row of fields for each concept there can be; javascript shows as many as there are."""
    rows = "".join(_row(number) for number in range(CONCEPTS))
    return (
        '<div class="lkf-concepts" id="lorakit_concepts" hidden>'
        '<p class="lkf-help">What is left empty is taken from the fields above.</p>'
        f'{rows}<button type="button" data-lk="add-concept"><span>Add a concept</span></button></div>'
    )


def field_id(key: str) -> str:
    """The id of a setting's field."""
    return "lkf-" + key.replace(".", "-").replace("_", "-")


def concept_fields() -> tuple[Setting, ...]:
    """What a concept says of itself."""
    return settings_of(CONCEPT, Concept)


def _default(item: Setting) -> str:
    """The default as it is shown: words as such, values as code."""
    if item.type is bool:
        return f"<span>{'on' if item.default else 'off'}</span>"
    text = str(text_of(item, item.default))
    return f"<code>{escape(text)}</code>" if text else "<span>empty</span>"


def _section(name: str, title: str) -> str:
    found = [item for item in fields() if item.section == name and item.key not in MAIN]
    return (
        f'<details class="lkf-section" data-section="{name}"><summary><span>{title}</span>'
        '<span class="lkf-changes" hidden><b>0</b> <span>changed</span></span></summary>'
        f'<div class="lkf-fields">{"".join(map(_field, found))}</div></details>'
    )


def _field(item: Setting) -> str:
    own, words = field_id(item.key), " ".join((item.key, label_of(item), item.help, ALIASES.get(item.key, "")))
    words += " " + " ".join(item.choices)
    return (
        f'<div class="lkf-field" data-key="{item.key}" data-words="{escape(words.lower())}">'
        f"{_input(item, own, label_of(item))}"
        f'<p class="lkf-help" id="{own}-help">{escape(item.help)}</p>'
        f'<p class="lkf-default"><code>{item.key}</code> <span><span>default</span> '
        f"{_default(item)}</span></p>"
        '<p class="lkf-why" hidden></p></div>'
    )


def _input(item: Setting, own: str, label: str) -> str:
    common = f'id="{own}" data-lk-key="{item.key}" aria-describedby="{own}-help"'
    if item.type is bool:
        box = f'<input type="checkbox" {common}>'
        return f'<label class="lkf-switch" for="{own}">{box}<span>{escape(label)}</span></label>'
    head = f'<label for="{own}">{escape(label)}</label>'
    if item.choices:
        options = "".join(
            f'<option class="notranslate" value="{escape(one)}">{escape(one)}</option>' for one in item.choices
        )
        return f"{head}<select {common}>{options}</select>"
    if item.type in (int, float):
        return f'{head}<input type="text" inputmode="decimal" autocomplete="off" {common}>'
    lines = ' data-lines="many" placeholder="one a line"' if item.type is tuple else ""
    return f'{head}<textarea rows="1" spellcheck="false" {common}{lines}></textarea>'


def _option(value: str) -> str:
    return f'<option class="notranslate" value="{value}">{value}</option>'


def _row(number: int) -> str:
    cells = "".join(_cell(item, number) for item in concept_fields())
    return (
        f'<fieldset class="lkf-concept" data-row="{number}" hidden>'
        f"<legend><span>Concept</span> <b>{number + 1}</b></legend>"
        f'<div class="lkf-fields">{cells}</div>'
        '<button type="button" data-lk="remove-concept"><span>Remove this concept</span></button></fieldset>'
    )


def _cell(item: Setting, number: int) -> str:
    own = f"lkc-{number}-{item.name.replace('_', '-')}"
    label = item.name.replace("_", " ").capitalize()
    lines = 'inputmode="decimal"' if item.type is int else ""
    return (
        f'<div class="lkf-field"><label for="{own}">{label}</label><textarea rows="1" spellcheck="false" id="{own}" '
        f'{lines} data-lk-concept="{item.name}" title="{escape(item.help)}"></textarea></div>'
    )


def _elsewhere() -> str:
    """The settings at the top of the page, found by the search as well."""
    return "".join(_pointer(item) for item in _of(MAIN))


def _pointer(item: Setting) -> str:
    words = f"{item.key} {label_of(item)} {item.help} {ALIASES.get(item.key, '')}".lower()
    return (
        f'<button type="button" class="lkf-pointer" data-lk-go="{PLACES[item.key]}" data-lk-for="{item.key}" '
        f'data-words="{escape(words)}" hidden>'
        f"<b>{escape(label_of(item))}</b> <span>is above; go there</span></button>"
    )


def _of(keys: Iterable[str]) -> list[Setting]:
    return [item for item in fields() if item.key in keys]
