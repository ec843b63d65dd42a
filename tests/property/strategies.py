"""What the property tests draw from."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from tornadose import Message

TRICKY = '\r\n :\0\t\x0b\x0c\x1c\x85\u2028\u2029\ufeff{}"\\adeginotv\u00e9\U0001f426'

texts = st.one_of(
    st.text(TRICKY, max_size=24), st.text(st.characters(exclude_categories=["Cs"]), max_size=24)
)
fields = texts.map(lambda text: "".join(c for c in text if c not in "\r\n\0")).filter(bool)
events = fields.filter(lambda name: name != "gap")


def message_of(text: str, cursor: str | None, event: str | None) -> Message[str]:
    return Message(text, cursor, event)


text_messages = st.builds(message_of, texts, st.none() | fields, st.none() | events)


def around(before: str, bad: str, after: str) -> str:
    return before + bad + after


lone_surrogates = st.characters(categories=["Cs"])
refused_fields = st.just("") | st.builds(
    around, texts, st.sampled_from("\r\n\0") | lone_surrogates, texts
)

json_values: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def in_a_list(value: object, others: list[object]) -> object:
    return [*others, value]


def in_an_object(key: str, value: object) -> object:
    return {key: value}


def nested(payloads: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Draw a payload alone, in a list, or as a value of an object."""
    return st.one_of(
        payloads,
        st.builds(in_a_list, payloads, st.lists(json_values)),
        st.builds(in_an_object, texts, payloads),
    )


not_json = nested(st.sampled_from([math.nan, math.inf, -math.inf, object(), {1}, 1j]))
