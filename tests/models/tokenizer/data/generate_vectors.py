#!/usr/bin/env python3
"""Writes the tokenizer vectors of this folder with Hugging Face tokenizers as the reference.

    generate_vectors.py [--model FILE.gguf]

Needs the Python packages tokenizers 0.23.3, sentencepiece and, for --model, gguf. Output, all
UTF-8 text:
  texts.json      the texts
  bpe.json        a byte-level BPE vocabulary trained on them, without regard to piece borders, so
                  that a wrong border changes ids
  spm.json        a SentencePiece BPE vocabulary with byte tokens
  <name>.ids      a line for each text: its ids, each as WIDTH characters of base 90 from '!'
for name in gpt-2, smollm, falcon, llama-bpe (bpe.json under each rule), spm, and with --model
smollm2 (the vocabulary of a SmolLM2 file).
"""
import argparse
import io
import json
import pathlib
import random
import re

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import trainers

HERE = pathlib.Path(__file__).parent
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<think>", "    \t"]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SENTENCES = r"""
The quick brown fox jumps over the lazy dog, doesn't it?
We've said that they'll come; I'm sure she'd agree. It's 10 o'clock!
WE'VE SHOUTED THAT IT'S LATE AND THEY'LL COME. I'M SURE, DON'T ASK.
Neurons that fire often are kept in fast memory, the others are computed where they lie.
In 1969 people walked on the moon; 3.14159 is close to pi and 1,000,000 is a million.
for (int i = 0; i < 10; ++i) { sum += values[i] * weights[i]; }  // dot product
def main():\n    print("hello, world")\n\n\nif __name__ == "__main__":\n\tmain()
SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name ORDER BY 2 DESC;
{"key": [1, 2.5e-3, null, true], "nested": {"a": "b\\n"}}
https://example.org/a/b?c=d&e=%20f#part and mail@example.org
Der Bär läuft über die Straße und frißt süße Äpfel; Öl wäre teurer.
Le garçon a mangé une crêpe à l'œuf près de l'été où l'on s'aimait.
El niño comió piñas; ¿cómo estás? ¡Qué alegría!
O coração não entende a razão, mas a avó põe a mesa às três.
Perché l'acqua è così blu? Già, lassù c'è il cielo.
Zażółć gęślą jaźń, a potem pójdź w świat.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép, és a kőszívű ember fiai.
Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ışık.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п'яне знаємо.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Τι ώρα είναι;
נקודה חשובה: השועל החום המהיר קופץ מעל הכלב. שָׁלוֹם
الثعلب البني السريع يقفز فوق الكلب الكسول. ١٢٣٤ مَرْحَبًا
سلام دنیا، این یک آزمایش است؛ ۱۲۳ کتاب می‌خواهم.
नमस्ते दुनिया, यह एक परीक्षण वाक्य है। १२३ किताबें
বাংলা ভাষায় একটি বাক্য লেখা হলো। ৪৫৬
ਸਤ ਸ੍ਰੀ ਅਕਾਲ ਦੁਨੀਆ, ਇਹ ਇੱਕ ਵਾਕ ਹੈ।
தமிழ் மொழியில் ஒரு சொற்றொடர் எழுதப்பட்டது.
తెలుగు భాషలో ఒక వాక్యం రాయబడింది.
ಕನ್ನಡ ಭಾಷೆಯಲ್ಲಿ ಒಂದು ವಾಕ್ಯ.
മലയാളത്തിൽ ഒരു വാക്യം എഴുതി.
ภาษาไทยไม่มีการเว้นวรรคระหว่างคำ ๑๒๓
ພາສາລາວ ສະບາຍດີ ຊາວໂລກ
မြန်မာဘာသာ စကားတစ်ခု ၁၂၃
ភាសាខ្មែរ សួស្តី ពិភពលោក
გამარჯობა მსოფლიო, ეს ქართული წინადადებაა.
Բարեւ աշխարհ, սա հայերեն նախադասություն է։
ሰላም ልዑል፣ ይህ ዓረፍተ ነገር ነው።
今天天气很好，我们去公园散步吧！价格是１２３元。
繁體中文也要測試：龍龜鬱鬱葱葱。
吾輩は猫である。名前はまだ無い。カタカナとひらがな、ー長音。
안녕하세요 세계, 이것은 한국어 문장입니다. 각각 힣
Tiếng Việt có nhiều dấu thanh: ả ã á à ạ ắ ằ ẳ ẵ ặ.
Emoji 😀😃 👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ☃ and ✅ done 🚀🚀🚀
Math ∑∏∫√∞ ≤≥≠ α∈ℝ ⅓ ½ ² ³ Ⅷ ㊙ ① x²+y²=z²
Money $5.00 €3 £2 ¥100 ₹70; 50% & 3^2 <tag> `code` ~tilde~ |pipe| a+b=c
ˈfəʊnɛtɪk ʃʒθð ŋ and 𝒻𝒶𝓃𝒸𝓎 𝕥𝕖𝕩𝕥 ﬁ ﬂ ſtraſſe it'ſ
A\u0301e\u0308 combining n\u0303 o\u0302\u0301 zero\u200bwidth joi\u200dner \ufeffbom soft\u00adhyphen
tabs\tand  double   triple    quadruple     spaces \u00a0nbsp\u2003em\u3000ideographic
line\r\nbreaks\n\nand\r\rmore \n \n  mixed \t\n  \r\n   end
𐍈𐌰𐌿𐍄 𓀀𓁐 𒀀𒁀 𐎀𐎁 ᚠᚢᚦ ⠓⠑⠇⠇⠕ ꙮ ᏣᎳᎩ ⴰⴱ ᠮᠣᠩ བོད་སྐད
""".strip().split("\n")
SENTENCES = [re.sub(r"\\u[0-9a-f]{4}|\\[nrt]", lambda m: json.loads(f'"{m[0]}"'), s)
             for s in SENTENCES]
SCRIPTS = [(0x21, 0x7E), (0xA1, 0x17F), (0x180, 0x24F), (0x300, 0x36F), (0x370, 0x3FF),
           (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
           (0x980, 0x9FF), (0xA00, 0xA7F), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xE00, 0xE7F),
           (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1200, 0x137F),
           (0x13A0, 0x13FF), (0x1780, 0x17FF), (0x2000, 0x206F), (0x2070, 0x20CF),
           (0x2150, 0x218F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x2600, 0x27BF),
           (0x3000, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF), (0x4E00, 0x9FFF),
           (0xA640, 0xA69F), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE30, 0xFFEF),
           (0x10000, 0x100FF), (0x10330, 0x1034F), (0x12000, 0x123FF), (0x1D400, 0x1D7FF),
           (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF)]
ATOMS = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2028", "\u3000", "\x85", "\x0b",
         "'s", "'S", "'t", "'re", "'RE", "'Ve", "'m", "'LL", "'d", "'", "''", "'x", "1", "12",
         "123", "1234", "1234567", "٣", "²", "½", "Ⅷ", "!", "!!", "...", ",", "$", "+", "<", "=",
         ">", "^", "~", "|", "`", "-", "_", "a", "B", "word", "Word", "é", "ß", "ж", "中", "中文",
         "あ", "한", "ש", "ع", "क्", "\u0301", "\u200d", "😀", "👍🏽", "<think>", "    \t", "▁", "▁▁"]


def make_texts():
    rng = random.Random(20240607)
    texts = ["", " ", "  ", "\n", "a", "\t\t", "hello", " hello", "hello ", "  hello  world  "]
    texts += SENTENCES
    words = [w for s in SENTENCES for w in s.split(" ")]
    while len(texts) < 900:
        texts.append(" ".join(rng.choice(words) for _ in range(rng.randint(1, 9))))
    while len(texts) < 1700:
        texts.append("".join(rng.choice(ATOMS) for _ in range(rng.randint(1, 14))))
    while len(texts) < 2300:
        spans = rng.sample(SCRIPTS, rng.randint(1, 2))
        chars = [chr(rng.randint(*rng.choice(spans))) for _ in range(rng.randint(1, 16))]
        for _ in range(rng.randint(0, 4)):
            chars.insert(rng.randint(0, len(chars)), rng.choice([" ", "  ", "\n", "1", "a", "."]))
        texts.append("".join(chars))
    # Single kinds repeated, and the white-space rules around every kind of neighbour.
    for unit in ["a", " ", "中", "1", "!", "\n", " \n", "ab", "é", "😀", "'s", "\t ", "\r\n"]:
        texts += [unit * 37, unit * 100, "x" + unit * 40 + "y"]
    seen = set()
    return [t for t in texts if not (t in seen or seen.add(t))]


def pre_tokenizer(name):
    def split(regex):
        return pre.Split(Regex(regex), "isolated")
    steps = {
        "gpt-2": [split(GPT2)],
        "smollm": [pre.Digits(individual_digits=True), split(GPT2)],
        "falcon": [split(r"[\p{P}$+<=>^~|`]+"), split(GPT2), split("[0-9]{3}")],
        "llama-bpe": [split(LLAMA)],
    }[name]
    return pre.Sequence(steps + [pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_bpe(texts):
    tokenizer = Tokenizer(models.BPE())
    # Long pieces on purpose: tokens that span the borders of every rule exist, and must not be used.
    tokenizer.pre_tokenizer = pre.Sequence([
        pre.Split(Regex(r"[\s\S]{1,12}"), "isolated"),
        pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=3000, show_progress=False, min_frequency=2,
                                  initial_alphabet=sorted(pre.ByteLevel.alphabet())[:-12])
    common = [t for t in texts if "<think>" not in t]
    tokenizer.train_from_iterator(common + SENTENCES * 2, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    tokens = [t for t, _ in sorted(state["vocab"].items(), key=lambda kv: kv[1])]
    merges = [" ".join(m) if isinstance(m, list) else m for m in state["merges"]]
    types = [1] * len(tokens) + [3] * len(CONTROL) + [4] * len(USER_DEFINED)
    return {"tokens": tokens + CONTROL + USER_DEFINED, "token_types": types, "merges": merges}


def bpe_reference(spec, name):
    vocab = {t: i for i, (t, k) in enumerate(zip(spec["tokens"], spec["token_types"])) if k == 1}
    merges = [tuple(m.split(" ")) for m in spec["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    return add_added(tokenizer, spec)


def add_added(tokenizer, spec):
    for i, (text, kind) in enumerate(zip(spec["tokens"], spec["token_types"])):
        if kind in (2, 3, 4):
            # Control tokens are left out: the vectors are user text, which must not form them.
            if kind == 4:
                tokenizer.add_tokens([AddedToken(text, normalized=False)])
                assert tokenizer.token_to_id(text) is not None
    return tokenizer


def renumber(tokenizer, spec, ids):
    """Hugging Face numbers added tokens from the end of its own vocabulary."""
    order = {t: i for i, t in enumerate(spec["tokens"])}
    return [order[tokenizer.id_to_token(i)] for i in ids]


def train_spm(texts):
    model = io.BytesIO()
    lines = [line for t in texts[:900] for line in t.replace("\r", "\n").split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=2600,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, character_coverage=0.99, minloglevel=2, num_threads=1,
        allow_whitespace_only_pieces=True, user_defined_symbols=[])
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n = processor.get_piece_size()
    kinds = [2 if processor.is_unknown(i) else 3 if processor.is_control(i)
             else 6 if processor.is_byte(i) else 1 for i in range(n)]
    spec = {"tokens": [processor.id_to_piece(i) for i in range(n)], "token_types": kinds,
            "scores": [processor.get_score(i) for i in range(n)]}
    return spec, processor


def spm_reference(spec):
    vocab = {t: i for i, t in enumerate(spec["tokens"])}
    merges = []
    for token, kind, score in zip(spec["tokens"], spec["token_types"], spec["scores"]):
        if kind != 1:
            continue
        for cut in range(1, len(token)):
            parts = (token[:cut], token[cut:])
            if all(p in vocab and spec["token_types"][vocab[p]] == 1 for p in parts):
                merges.append((-score, vocab[parts[0]], vocab[parts[1]], parts))
    merges = [m[3] for m in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def model_reference(path):
    import gguf
    fields = gguf.GGUFReader(path).fields
    def read(name):
        return fields["tokenizer.ggml." + name].contents()
    spec = {"tokens": read("tokens"), "token_types": read("token_type"), "merges": read("merges")}
    return bpe_reference(spec, read("pre")), spec


def pack(ids, width):
    out = []
    for i in ids:
        assert 0 <= i < 90 ** width
        out.append("".join(chr(33 + i // 90 ** k % 90) for k in range(width)))
    return "".join(out)


def write_ids(name, rows, width):
    lines = "".join(pack(row, width) + "\n" for row in rows)
    (HERE / f"{name}.ids").write_text(lines)


def write_json(name, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (HERE / name).write_text(text + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    args = parser.parse_args()
    texts = make_texts()
    write_json("texts.json", texts)
    bpe = train_bpe(texts)
    write_json("bpe.json", bpe)
    for name in ["gpt-2", "smollm", "falcon", "llama-bpe"]:
        tokenizer = bpe_reference(bpe, name)
        write_ids(name, [renumber(tokenizer, bpe, tokenizer.encode(t).ids) for t in texts], 2)
    spm, processor = train_spm(texts)
    write_json("spm.json", spm)
    tokenizer = spm_reference(spm)
    rows = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    differ = sum(row != processor.encode(t) for row, t in zip(rows, texts))
    print(f"sentencepiece differs from tokenizers on {differ} of {len(texts)} texts")
    write_ids("spm", rows, 2)
    if args.model:
        tokenizer, spec = model_reference(args.model)
        rows = [renumber(tokenizer, spec, tokenizer.encode(t).ids) for t in texts]
        write_ids("smollm2", rows, 3)
    print(len(texts), "texts")


main()
