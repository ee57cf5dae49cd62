#!/usr/bin/env python3
"""Writes unicode_tables.inc and nfc_tables.inc beside this file: what Hugging Face's `tokenizers` knows of Unicode.

The library itself is asked, code point by code point, because its parts follow different versions of Unicode
(tokenizers 0.23: regular expressions 16.0, as tiktoken 0.14; digits 17.0; normalisation 9.0). Needs tokenizers and a
`unicodedata2` that is newer than all of these, whose decompositions are taken where the library agrees with them.
"""

import pathlib
import sys

import unicodedata2 as newest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

HERE = pathlib.Path(__file__).resolve().parent
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# In the order of CharKind (unicode.h), from 1; 0 is everything else.
KINDS = [r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\s"]
LATER_DIGIT = len(KINDS) + 1


def matching(regex):
    split = pre_tokenizers.Split(Regex(f"(?:{regex})+"), "removed", invert=True)
    found = set()
    for i in range(0, len(CODE_POINTS), 1 << 16):
        for word, _ in split.pre_tokenize_str("".join(map(chr, CODE_POINTS[i : i + (1 << 16)]))):
            found.update(map(ord, word))
    return found


def kinds():
    kind = [0] * 0x110000
    for number, regex in enumerate(KINDS, 1):
        for c in matching(regex):
            assert kind[c] == 0, f"U+{c:04X} is of two kinds"
            kind[c] = number
    digits = pre_tokenizers.Digits(individual_digits=True)
    for i in range(0, len(CODE_POINTS), 1 << 14):
        text = "".join("a" + chr(c) for c in CODE_POINTS[i : i + (1 << 14)]) + "a"
        for word, _ in digits.pre_tokenize_str(text):
            if len(word) == 1 and word != "a" and kind[ord(word)] != 7:
                assert kind[ord(word)] == 0
                kind[ord(word)] = LATER_DIGIT
    return kind


def word_characters():
    """What \\w is for single_word of added tokens."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.add_tokens([AddedToken("QQ", single_word=True, normalized=False)])
    inside = [0] * 0x110000
    for c in CODE_POINTS:
        inside[c] = int(not tokenizer.encode(chr(c) + "QQ").ids)
    return inside


def changes(values):
    """(first code point, value) of each run of equal values."""
    return [(c, v) for c, v in enumerate(values) if c == 0 or v != values[c - 1]]


def write(file, name, what, numbers, width):
    digits = [f"{n:#x}," for n in numbers]
    file.write(f"// {what}\nconstexpr {width} {name}[] = {{\n")
    line = ""
    for d in digits:
        if len(line) + len(d) > 110:
            file.write(line + "\n")
            line = ""
        line += d
    file.write(line + "\n};\n")


def nfc_data():
    nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    # A mark is what U+0334 (class 1) passes on its way to before U+0301.
    classes = [0] * 0x110000
    for c in CODE_POINTS:
        if nfd("\u0301" + chr(c) + "\u0334") != "\u0301" + chr(c) + "\u0334" and newest.combining(chr(c)):
            classes[c] = newest.combining(chr(c))
    marks = [c for c in CODE_POINTS if classes[c]]
    first_of = {}
    for c in marks:
        first_of.setdefault(classes[c], c)
    for c in marks:
        for r, other in first_of.items():
            swapped = nfd(chr(c) + chr(other)) != nfd(chr(c)) + nfd(chr(other))
            assert swapped == (r < classes[c]), f"combining class of U+{c:04X}"
    decompositions = []
    for c in CODE_POINTS:
        if nfd(chr(c)) == chr(c) or 0xAC00 <= c < 0xD7A4:
            continue
        parts = [int(p, 16) for p in newest.decomposition(chr(c)).split()]
        assert len(parts) in (1, 2), f"decomposition of U+{c:04X}"
        a, b = parts[0], parts[1] if len(parts) == 2 else 0
        composes = b != 0 and nfc(chr(a) + chr(b)) == chr(c)
        decompositions.append(composes << 63 | c << 42 | a << 21 | b)
    return changes(classes), decompositions


def main():
    import tokenizers

    head = (
        f"// Written by make_unicode_tables.py, which asked tokenizers {tokenizers.__version__}.\n"
        "// clang-format off\n"
    )
    with open(HERE / "unicode_tables.inc", "w") as file:
        file.write(head)
        write(file, "kKindChanges", "First code point << 4 | CharKind, of each run of one kind.",
              [c << 4 | k for c, k in changes(kinds())], "uint32_t")
        write(file, "kWordChanges", "Where \\w begins, ends, begins again and so on.",
              [c for c, _ in changes(word_characters())][1:], "uint32_t")
    classes, decompositions = nfc_data()
    with open(HERE / "nfc_tables.inc", "w") as file:
        file.write(head)
        write(file, "kClassChanges", "First code point << 8 | canonical combining class, of each run of one class.",
              [c << 8 | k for c, k in classes], "uint32_t")
        write(file, "kDecompositions",
              "(composes again) << 63 | character << 42 | first << 21 | second or 0: one step of the decomposition.",
              decompositions, "uint64_t")


if __name__ == "__main__":
    sys.exit(main())
