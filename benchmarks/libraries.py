"""Our subtitle reader and our language check, compared with libraries that could take their place.

    pip install --no-deps --target FOLDER pysubs2 webvtt-py py3langid lingua-language-detector \
        tenacity pooch openai jiter sniffio
    python -m benchmarks.libraries FOLDER

Subtitles: forms that people write, which give the same cues as ours or not. Both libraries get the help of
our code: markup is removed, entities are read, and a cue needs a text and a duration. Languages: short texts
that a language must accept and another language must refuse, at the default rule of 0.5. Sizes are on disk.
Times and memory of an import are those of a new process.
"""

from __future__ import annotations

import functools
import html
import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from captioning.checks.language import LANGUAGES, language
from captioning.checks.measures import DEFAULT_RULES
from captioning.prompts import tidy
from captioning.subtitles import _TAG, Cue, parse_subtitles
from tests.captioning.checks.test_measures import ENGLISH, FOREIGN
from tests.captioning.test_sidecar import FORMS

IMPORTS = ("pysubs2", "webvtt", "py3langid", "lingua", "tenacity", "pooch", "openai", "aiohttp", "filelock")
WANTED = DEFAULT_RULES["caption.language"]["min"]

# Captions in each language of captioning.checks.language: a car, children with a dog, a sunset, a cook,
# a bee on a flower.
CAPTIONS = {
    "en": [
        "A red car drives along a wet street at night.",
        "Two children play with a dog on the beach.",
        "Sunset over the mountains",
        "A chef slices tomatoes in a small kitchen while steam rises from a pot behind him.",
        "Close-up of a bee on a yellow flower",
    ],
    "de": [
        "Ein rotes Auto fährt nachts über eine nasse Straße.",
        "Zwei Kinder spielen mit einem Hund am Strand.",
        "Sonnenuntergang über den Bergen",
        "Ein Koch schneidet Tomaten in einer kleinen Küche, während hinter ihm Dampf aus einem Topf steigt.",
        "Nahaufnahme einer Biene auf einer gelben Blume",
    ],
    "fr": [
        "Une voiture rouge roule dans une rue mouillée la nuit.",
        "Deux enfants jouent avec un chien sur la plage.",
        "Coucher de soleil sur les montagnes",
        "Un cuisinier coupe des tomates dans une petite cuisine tandis que la vapeur sort d'une casserole.",
        "Gros plan d'une abeille sur une fleur jaune",
    ],
    "es": [
        "Un coche rojo circula de noche por una calle mojada.",
        "Dos niños juegan con un perro en la playa.",
        "Puesta de sol sobre las montañas",
        "Un cocinero corta tomates en una cocina pequeña mientras sale vapor de una olla.",
        "Primer plano de una abeja en una flor amarilla",
    ],
    "it": [
        "Un'auto rossa percorre di notte una strada bagnata.",
        "Due bambini giocano con un cane sulla spiaggia.",
        "Tramonto sulle montagne",
        "Un cuoco taglia i pomodori in una piccola cucina mentre il vapore sale da una pentola.",
        "Primo piano di un'ape su un fiore giallo",
    ],
    "pt": [
        "Um carro vermelho anda por uma rua molhada à noite.",
        "Duas crianças brincam com um cão na praia.",
        "Pôr do sol sobre as montanhas",
        "Um cozinheiro corta tomates numa cozinha pequena enquanto o vapor sobe de uma panela.",
        "Plano próximo de uma abelha numa flor amarela",
    ],
    "nl": [
        "Een rode auto rijdt 's nachts door een natte straat.",
        "Twee kinderen spelen met een hond op het strand.",
        "Zonsondergang boven de bergen",
        "Een kok snijdt tomaten in een kleine keuken terwijl er stoom uit een pan opstijgt.",
        "Close-up van een bij op een gele bloem",
    ],
    "pl": [
        "Czerwony samochód jedzie nocą po mokrej ulicy.",
        "Dwoje dzieci bawi się z psem na plaży.",
        "Zachód słońca nad górami",
        "Kucharz kroi pomidory w małej kuchni, a za nim z garnka unosi się para.",
        "Zbliżenie pszczoły na żółtym kwiacie",
    ],
    "sv": [
        "En röd bil kör längs en våt gata på natten.",
        "Två barn leker med en hund på stranden.",
        "Solnedgång över bergen",
        "En kock skär tomater i ett litet kök medan ånga stiger från en gryta bakom honom.",
        "Närbild av ett bi på en gul blomma",
    ],
    "ro": [
        "O mașină roșie merge noaptea pe o stradă udă.",
        "Doi copii se joacă cu un câine pe plajă.",
        "Apus de soare peste munți",
        "Un bucătar taie roșii într-o bucătărie mică în timp ce din oală iese abur.",
        "Prim-plan cu o albină pe o floare galbenă",
    ],
    "tr": [
        "Kırmızı bir araba gece ıslak bir sokakta ilerliyor.",
        "İki çocuk kumsalda bir köpekle oynuyor.",
        "Dağların üzerinde gün batımı",
        "Bir aşçı küçük bir mutfakta domates doğrarken arkasındaki tencereden buhar yükseliyor.",
        "Sarı bir çiçeğin üzerindeki arının yakın çekimi",
    ],
    "id": [
        "Sebuah mobil merah melaju di jalan yang basah pada malam hari.",
        "Dua anak bermain dengan seekor anjing di pantai.",
        "Matahari terbenam di atas pegunungan",
        "Seorang koki memotong tomat di dapur kecil sementara uap naik dari panci di belakangnya.",
        "Gambar dekat seekor lebah di atas bunga kuning",
    ],
    "vi": [
        "Một chiếc xe màu đỏ chạy trên con phố ướt vào ban đêm.",
        "Hai đứa trẻ chơi với một con chó trên bãi biển.",
        "Hoàng hôn trên núi",
        "Một đầu bếp thái cà chua trong căn bếp nhỏ khi hơi nước bốc lên từ nồi.",
        "Cận cảnh một con ong trên bông hoa vàng",
    ],
    "zh": [
        "夜里，一辆红色的汽车在湿漉漉的街道上行驶。",
        "两个孩子在沙滩上和狗玩耍。",
        "山上的日落",
        "厨师在小厨房里切西红柿，身后的锅里冒着蒸汽。",
        "黄色花朵上的蜜蜂特写",
    ],
    "ja": [
        "夜、赤い車が濡れた道を走っている。",
        "二人の子供が浜辺で犬と遊んでいる。",
        "山に沈む夕日",
        "小さな台所で料理人がトマトを切り、後ろの鍋から湯気が立っている。",
        "黄色い花にとまるミツバチのアップ",
    ],
    "ko": [
        "빨간 자동차가 밤에 젖은 거리를 달린다.",
        "두 아이가 해변에서 개와 놀고 있다.",
        "산 위로 지는 해",
        "요리사가 작은 부엌에서 토마토를 썰고 뒤의 냄비에서 김이 오른다.",
        "노란 꽃 위의 벌을 가까이에서 찍은 모습",
    ],
    "ru": [
        "Красная машина едет ночью по мокрой улице.",
        "Двое детей играют с собакой на пляже.",
        "Закат над горами",
        "Повар режет помидоры на маленькой кухне, а за ним из кастрюли поднимается пар.",
        "Крупный план пчелы на жёлтом цветке",
    ],
    "uk": [
        "Червона машина їде вночі мокрою вулицею.",
        "Двоє дітей граються з собакою на пляжі.",
        "Захід сонця над горами",
        "Кухар ріже помідори на маленькій кухні, а позаду нього з каструлі здіймається пара.",
        "Великий план бджоли на жовтій квітці",
    ],
    "el": [
        "Ένα κόκκινο αυτοκίνητο κινείται τη νύχτα σε έναν βρεγμένο δρόμο.",
        "Δύο παιδιά παίζουν με έναν σκύλο στην παραλία.",
        "Ηλιοβασίλεμα πάνω από τα βουνά",
        "Ένας μάγειρας κόβει ντομάτες σε μια μικρή κουζίνα.",
        "Κοντινό πλάνο μιας μέλισσας σε κίτρινο λουλούδι",
    ],
    "ar": [
        "سيارة حمراء تسير ليلا في شارع مبلل.",
        "طفلان يلعبان مع كلب على الشاطئ.",
        "غروب الشمس فوق الجبال",
        "طباخ يقطع الطماطم في مطبخ صغير بينما يتصاعد البخار من القدر.",
        "لقطة قريبة لنحلة على زهرة صفراء",
    ],
    "fa": [
        "یک ماشین قرمز شب در خیابانی خیس حرکت می‌کند.",
        "دو کودک با سگی در ساحل بازی می‌کنند.",
        "غروب خورشید بر فراز کوه‌ها",
        "آشپزی در آشپزخانه‌ای کوچک گوجه‌فرنگی خرد می‌کند و پشت سرش از قابلمه بخار بلند می‌شود.",
        "نمای نزدیک از زنبوری روی گل زرد",
    ],
    "he": [
        "מכונית אדומה נוסעת בלילה ברחוב רטוב.",
        "שני ילדים משחקים עם כלב על החוף.",
        "שקיעה מעל ההרים",
        "טבח חותך עגבניות במטבח קטן בזמן שאדים עולים מהסיר.",
        "תקריב של דבורה על פרח צהוב",
    ],
    "hi": [
        "रात में एक लाल कार गीली सड़क पर चल रही है।",
        "दो बच्चे समुद्र तट पर कुत्ते के साथ खेल रहे हैं।",
        "पहाड़ों पर सूर्यास्त",
        "एक रसोइया छोटी रसोई में टमाटर काट रहा है और पीछे बर्तन से भाप उठ रही है।",
        "पीले फूल पर मधुमक्खी का नज़दीकी दृश्य",
    ],
    "th": [
        "รถสีแดงวิ่งไปตามถนนเปียกในตอนกลางคืน",
        "เด็กสองคนเล่นกับสุนัขบนชายหาด",
        "พระอาทิตย์ตกเหนือภูเขา",
        "พ่อครัวหั่นมะเขือเทศในครัวเล็ก ๆ ขณะที่ไอน้ำลอยขึ้นจากหม้อ",
        "ภาพระยะใกล้ของผึ้งบนดอกไม้สีเหลือง",
    ],
}
SHORT_ENGLISH = [  # with names and loan words, as captioners write them
    "Drone shot over Rio de Janeiro at dusk.",
    "Tango dancers in Buenos Aires.",
    "Toyota Supra drifting.",
    "Panda eats bamboo.",
    "Skateboarder, halfpipe, slow motion.",
    "Man playing cello.",
    "Surfer rides giant wave, Nazaré.",
    "Time-lapse of clouds",
    "Macro: dew drops, leaf.",
    "Neon city lights, rain, bokeh.",
    "Mont Saint-Michel at low tide.",
    "POV: drone flight, 4K.",
    "Elderly couple dancing salsa in Havana.",
    "Geisha walking, Kyoto.",
    "Ferrari 488 Pista on a racetrack.",
    "Pouring espresso into a glass.",
    "Sushi chef prepares nigiri.",
    "Barista pours latte art.",
    "Golden retriever puppies playing.",
    "Fireworks explode above Sydney Harbour Bridge.",
    "Taj Mahal at sunrise.",
    "Volcano eruption, lava flow, Iceland.",
    "Matador and bull, Pamplona.",
    "Kids blow bubbles.",
    "Trail runner descends scree.",
    "Close-up, hands knead dough.",
    "A matcha latte, a croissant au beurre and a café crème on a table.",
    "Lionel Messi dribbles past Sergio Ramos.",
    "Angela Merkel shakes hands with Emmanuel Macron.",
    "Vladimir Horowitz plays Chopin.",
    "The animated text introduces São Paulo, Curitiba and Belo Horizonte.",
    "Samba parade.",
]

Score = Callable[[str, str], float]


def main() -> None:
    folder = sys.argv[1]
    sys.path.append(folder)
    for name in IMPORTS:
        size = Path(folder) / name
        on_disk = f"{_megabytes(size):.1f} MB on disk" if size.exists() else "installed already"
        print(f"{name}: {on_disk}, import {_import(folder, name)}")
    print()
    for name, read in {"pysubs2": _by_pysubs2, "webvtt-py": _by_webvtt}.items():
        _compare_subtitles(name, read)
    print()
    for name, make in {"ours": lambda: language, "py3langid": _py3langid, "lingua": _lingua}.items():
        began = time.perf_counter()
        score = make()
        _compare_languages(name, score, time.perf_counter() - began)


# --- subtitles ------------------------------------------------------------------------------------


def _by_pysubs2(text: str, form: str) -> list[Cue]:
    import pysubs2

    found = pysubs2.SSAFile.from_string(text, format_=form, keep_html_tags=True)
    return _cues([(e.start / 1000, e.end / 1000, e.text.replace("\\N", " ")) for e in found])


def _by_webvtt(text: str, form: str) -> list[Cue]:
    import webvtt

    found = webvtt.from_buffer(io.StringIO(text), form)
    times = [(c.start_time.in_milliseconds() / 1000, c.end_time.in_milliseconds() / 1000) for c in found]
    return _cues([(*time, c.raw_text) for time, c in zip(times, found, strict=True)])


def _cues(found: list[tuple[float, float, str]]) -> list[Cue]:
    read = [Cue(start, end, tidy(html.unescape(_TAG.sub("", text)))) for start, end, text in found]
    return [cue for cue in read if cue.text and cue.end_s > cue.start_s]


def _compare_subtitles(name: str, read: Callable[[str, str], list[Cue]]) -> None:
    others = {}
    for what, (form, text, _) in FORMS.items():
        ours = parse_subtitles(text)
        try:
            if (found := read(text, form)) != ours:
                others[what] = str([(c.start_s, c.end_s, c.text) for c in found])
        except Exception as error:
            others[what] = f"{type(error).__name__}: {error}"
    print(f"{name}: {len(FORMS) - len(others)} of {len(FORMS)} forms give the same cues as ours")
    for what, found in others.items():
        print(f"  {what}: {found}")


# --- languages ------------------------------------------------------------------------------------


def _py3langid() -> Score:
    from py3langid.langid import _load_identifier

    identifier = _load_identifier(norm_probs=True, langs=LANGUAGES)
    rank = functools.cache(lambda text: dict(identifier.rank(text)))
    return lambda text, wanted: _to_best(rank(text), wanted)


def _lingua() -> Score:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, name.upper()) for name in LANGUAGES]
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()

    @functools.cache
    def values(text: str) -> dict[str, float]:
        found = detector.compute_language_confidence_values(text)
        return {v.language.iso_code_639_1.name.lower(): v.value for v in found}

    values("a first text loads the models")
    return lambda text, wanted: _to_best(values(text), wanted)


def _to_best(values: dict[str, float], wanted: str) -> float:
    """The probability of the wanted language over that of the likeliest one, which is kind to short texts."""
    return values.get(wanted, 0.0) / (max(values.values()) or 1.0)


def _compare_languages(name: str, score: Score, seconds: float) -> None:
    english = [*ENGLISH, *SHORT_ENGLISH, *CAPTIONS["en"]]
    lettered = [text for text in FOREIGN if any(map(str.isalpha, text))]
    foreign = [*lettered, *(text for code in CAPTIONS if code != "en" for text in CAPTIONS[code])]
    texts = [(code, text) for code, found in CAPTIONS.items() for text in found]
    began = time.perf_counter()
    refused = sum(score(text, "en") < WANTED for text in english)
    accepted = sum(score(text, "en") >= WANTED for text in foreign)
    own = sum(score(text, code) < WANTED for code, text in texts)
    pairs = [
        (code, other)
        for code, text in texts
        for other in CAPTIONS
        if other != code and score(text, other) >= WANTED
    ]
    taken = time.perf_counter() - began
    print(f"{name}: loaded in {seconds:.2f} s, {taken:.2f} s for all texts")
    print(f"  English that is refused: {refused} of {len(english)}")
    print(f"  another language that is accepted as English: {accepted} of {len(foreign)}")
    print(f"  captions that are refused in their own language: {own} of {len(texts)}")
    most = len(texts) * (len(CAPTIONS) - 1)
    print(f"  captions that are accepted in a wrong language: {len(pairs)} of {most}")


# --- costs ----------------------------------------------------------------------------------------


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _import(folder: str, name: str) -> str:
    runs = []
    for _ in range(3):
        code = _TIMED.format(folder=folder, name=name)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        runs.append([float(word) for word in run.stdout.split()])
    seconds, taken = min(runs)
    return f"{seconds * 1000:.0f} ms and {taken / 1e6:.0f} MB of memory"


_TIMED = """
import psutil, sys, time
sys.path.append({folder!r})
before, began = psutil.Process().memory_info().rss, time.perf_counter()
import {name}
print(time.perf_counter() - began, psutil.Process().memory_info().rss - before)
"""


if __name__ == "__main__":
    main()
