"""Deterministic texts that are hard on tokenizers: many scripts, many kinds of white space, and what is between."""

ENGLISH = """the of and to in is that it was for on are as with his they be at one have this from by hot word but what
some can out other were all there when up use your how said an each she which do their time if will way about many then
them would like so these her long make thing see him two has look more day could go come did number sound no most people
my over know water than call first who may down side been now find any new work part take get place made live where
after back little only round man year came show every good me give our under name very through just form sentence great
think say help low line differ turn cause much mean before move right boy old too same tell does set three want air well
internationalization antidisestablishmentarianism Kubernetes iPhone McDonald NASA HTTPServer XMLHttpRequest""".split()
CODE = """for (int i = 0; i < n; ++i) {|    return x->y[i] += 0x1F;|def f(self, *args, **kwargs):|\tif not x: pass|}|
#include <vector>|std::unique_ptr<T> p = nullptr;|SELECT * FROM t WHERE a != 'b';|<div class="x">&amp;</div>|\r
const f = async () => await g(`${a}`);|//////////|# ---- #|/* ** */|x = [1, 2.5e-3, -7];|import os, sys|\\frac{a}{b}|
https://example.com/a/b?c=d&e=%20f#g|{"key": [true, null, "va\\"lue"]}|git commit -m "x"|a_b_c = d.e.f()|@@ -1,7 +1,7 @@|
../..//x|$HOME/.config|fn main() -> Result<(), Box<dyn Error>> {|    \t  |'''doc'''|let x: &'a str = 'b';""".split("|")
CONTRACTIONS = """I'm we're they've he'll she'd it's don't I'M WE'RE THEY'VE HE'LL SHE'D IT'S DON'T i'Ll we'rE o'clock 'tis
'Twas ''s '' 'S'T '\u017f it'\u017f IT'\u017fx '\u212a l'\u212b rock'n'roll d'd'd 'ſt 're're 've 'vE y'all'd've can't've
'\u0301s s'\u0301 's\u0301 'l 'v 'r 'x ' 's' 't1 1's 日's 's日""".split()
WORDS = """你好 世界 人工智能 深度学习 。 ， 「こんにちは」 日本語 カタカナ ひらがな ー ゛ 한국어 안녕하세요 ภาษาไทย สวัสดีครับ กำลัง
العربية مرحبا اَلْعَرَبِيَّةُ ١٢٣ עברית שָׁלוֹם हिन्दी नमस्ते क्षत्रिय १२३ বাংলা தமிழ் తెలుగు ខ្មែរ မြန်မာ ລາວ བོད་ ქართული Ქართული հայերեն ελληνικά ΆΛΦΑ
русский ПРИВЕТ Ёлка українська polski Łódź türkçe İstanbul ığdır straße ẞ Ǆǅǆ ŉ ﬁ ﬂ ﬆ Ⅷ ⅷ ½ ² ³ ① ㊿ 〇 々 〆 ʰ ʼ ˈ ª º ᵃ ⁿ ₂ Å Å Å Ω Ω K K é é ạ̈ ọ̣ q̣̇
ệ ệ 각 각 각 ᄀᄀᄀ ᆨ ﷺ ﷽ 𝐀𝒃𝟙 𝔘 ａＢ１ 가ᆧ 倫 不 㐀 𠀀 𫠠 鿿 龥 龦 㙉 丽 פּ ﬞ ͏ ͅ ̈́ ̓ ʹ ; · ़ क़ ড় ਲ਼ ୈ ொ ෝ ཱི ྲྀ ྲཱྀ ဦ ℵ ⫝̸ 𝅗𝅥 𑂚""".split()
EMOJI = """👍 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 🇯🇵🇺🇸 ❤️ ❤ 1️⃣ #️⃣ 🤷🏾‍♀️ 🫨 🫩 🪉 ©️ ™ → ∑ ≠ ∀ € ₿ ￥ ♠ ─│┌ █ ░ ⠿ 🀄 𓀀 🛜 🪾 🫆""".split()
SPACES = [" ", "  ", "   ", "    ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", "  \n  ", "\n\n\n   ", "\u00a0",
          "\u3000", "\u2003", "\u200b", "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\u1680", "\u202f", "\u205f", "\u180e",
          "\ufeff", " \u00a0", "\u00a0 ", "\u3000\u3000", " \t ", "\r\n\r\n", " \r\n \r\n ", "\x1c", "\x1f"]
# Letters, marks, digits and signs of Unicode 14 to 17, and code points that are none.
NEW = [0x1C89, 0x1C8A, 0xA7CB, 0xA7CE, 0xA7DA, 0x10D50, 0x10D70, 0x10D40, 0x105C9, 0x105C0, 0x11383, 0x113D1, 0x11DE0,
       0x16D68, 0x16D63, 0x16D70, 0x16FF4, 0x1CC00, 0x1CCF0, 0x1E4D0, 0x1E4EC, 0x1E4F0, 0x1E5D0, 0x1E5F1, 0x1FBF0, 0x1FAE9,
       0x31350, 0x323AF, 0x323B0, 0x2EBF0, 0x897, 0x898, 0xC3C, 0x1AC1, 0x1B4E, 0x1715, 0x11F00, 0x11F50, 0x1E08F, 0x10EFD,
       0x378, 0xE000, 0xFFFF, 0xFDD0, 0x10FFFF, 0xE0001, 0xE0100, 0x1F1E6, 0x200C, 0x200D, 0x2060, 0x61C, 0xFE0F, 0xAD]
MARKS = [0x300, 0x301, 0x302, 0x308, 0x30A, 0x323, 0x327, 0x328, 0x334, 0x345, 0x360, 0x5B0, 0x5C1, 0x64B, 0x651, 0x93C,
         0x94D, 0xE38, 0xE48, 0x302A, 0x3099, 0x309A, 0x1D165, 0x20D0, 0x488, 0x1AB0, 0xF71, 0xF72, 0x1161, 0x11A8, 0x315]


def piece(r, specials):
    kind = r.randrange(100)
    if kind < 30:
        words = [r.choice(ENGLISH) for _ in range(r.randint(1, 14))]
        if r.random() < 0.3:
            words[0] = words[0].capitalize()
        return " ".join(words) + r.choice([".", ",", "!", "?", ";", ":", "...", ")", '"', "", " ", "\n"])
    if kind < 45:
        return r.choice(CODE) + r.choice(["\n", "\n\n", "", " ", "\r\n", "\n    "])
    if kind < 51:
        return r.choice(["", " "]) + r.choice(CONTRACTIONS)
    if kind < 64:
        return r.choice(["", " "]).join(r.choice(WORDS) for _ in range(r.randint(1, 6)))
    if kind < 68:
        return "".join(r.choice(EMOJI) for _ in range(r.randint(1, 3)))
    if kind < 76:
        return "".join(r.choice(SPACES) for _ in range(r.randint(1, 3)))
    if kind < 80:
        return r.choice(["", " ", "-", "."]) + "".join(r.choice("0123456789") for _ in range(r.randint(1, 12)))
    if kind < 83:
        return "".join(chr(r.choice(NEW)) for _ in range(r.randint(1, 3)))
    if kind < 86:
        return r.choice(["a", "e", "o", "S", "к", "カ", "ᄀ", "가", "", " ", "1"]) + "".join(
            chr(r.choice(MARKS)) for _ in range(r.randint(1, 5)))
    if kind < 88:
        return "".join(chr(r.choice([*range(32), 127, *range(128, 160)])) for _ in range(r.randint(1, 4)))
    if kind < 90:
        return r.choice(["a", " ", "=", "-", "\n", "A", "é", "日", "!", "0", "ab", "/", "\u0301", "'"]) * r.randint(2, 40)
    if kind < 93:
        return "".join(r.choice("aAbB1.'-/_ \n\t\u00e9\u0416\u02b0\u0301\u4e00\u01c5") for _ in range(r.randint(1, 12)))
    if kind < 96:
        low = r.choice([0x20, 0x100, 0x300, 0x600, 0x900, 0x1100, 0x1E00, 0x2000, 0x3000, 0xA000, 0x10000, 0x1D000, 0x20000])
        c = low + r.randrange(0x400)
        return chr(c if not 0xD800 <= c < 0xE000 else 0xFFFD)
    if kind < 98:
        c = r.randrange(0x110000)
        return chr(c if not 0xD800 <= c < 0xE000 else 0x41)
    if specials:
        name = r.choice(specials)
        return r.choice([name, name, " " + name + " ", name[: r.randrange(len(name))], name[1:], name + name])
    return "<|"


def make_texts(r, total, specials):
    """Texts of `total` bytes in all. Names of special tokens are among them, whole and cut."""
    texts, size = [], 0
    while size < total:
        length = r.choice([10, 100, 1000, 10_000, 50_000])
        parts = []
        while length > 0:
            parts.append(piece(r, specials))
            length -= len(parts[-1].encode())
        texts.append("".join(parts))
        size += len(texts[-1].encode())
    return texts
