"""Each check on captions that must break the default rules, and on captions that must not."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.checks import measures
from captioning.checks.language import LANGUAGES, language
from captioning.checks.measures import CHECKS, DEFAULT_RULES, failing, measure
from captioning.prompts import PROMPTS

DETAILED = PROMPTS["detailed"].text


def broken(name: str, value: float, rules: Mapping[str, Mapping[str, float]] = DEFAULT_RULES) -> bool:
    column = f"caption.{name}"
    assert column in rules
    return failing({name: value}, {column: rules[column]}) == column


REFUSED = [
    "I'm sorry, but I can't assist with that request.",
    "I cannot describe the people in this video.",
    "Sorry, I am unable to view videos directly. Please upload a picture instead.",
    "As an AI language model, I do not have the ability to watch videos.",
    "A street at night. Unfortunately, I cannot determine what the two people are holding.",
    "Please provide the video so that a description can be written.",
    "It appears that no image was attached to the conversation.",
    "I don't see any frames in your message.",
    "It is not possible to describe the scene without more context.",
    "I’m not able to identify the person in the foreground, who wears a blue coat.",
    "I apologize, the content violates my guidelines.",
    "The video could not be processed, so its content remains unknown.",
    "My apologies! There was an error reading the frames.",
    "对不起，我无法描述这个视频的内容。",
    "I need more information to write a caption for it.",
    "The frames are black, so I can’t tell what happens.",
    "Unable to process the request.",
    "No description available.",
]
NOT_REFUSED = [
    "A man in a grey suit says \"I'm sorry, I can't help you\" into a telephone and hangs up.",
    "A woman apologizes to her neighbour, bows, and hands him a basket of apples.",
    "Two actors argue on a stage; one shouts that he cannot go on and throws his hat to the floor.",
    "A sign on the door reads 'Sorry, we are closed', and a dog sleeps on the mat in front of it.",
    "A climber is unable to reach the next hold and swings from the rope.",
    "A robot with a screen that shows the words “I cannot see you” rolls through a corridor.",
    "As an AI-powered arm sorts parcels, workers in yellow vests watch from a gallery.",
    "Heavy fog fills the valley, so that only the tips of the firs can be seen.",
    "A child refuses a spoon of soup and turns its head away.",
    "A poster of a model stands in a shop window; an assistant adjusts its frame.",
    "A monitor shows a red cross over an image icon while a technician pulls out a cable.",
    "A police officer provides directions to tourists who hold an open map.",
    "A teacher writes I can on the blackboard, and the pupils copy it into their notebooks.",
    "The letters SORRY are spelled in candles on the lawn.",
    "The text on the screen says: I can't do this without you. A singer bows.",
    "A man holds a cardboard sign, Please Help, and a passer-by provides him with a coin.",
    "Goggles fog up, and the skier cannot see the slope; she stops beside a pole.",
    "An image on the billboard is pasted over with another; a worker can be seen on a ladder.",
]

ECHOED = [
    DETAILED,
    DETAILED + " A dog runs across a lawn.",
    DETAILED.split("\n")[1],
    "Write only what can be seen. State what is there, never what is missing or might be.",
    "One paragraph of 60 to 150 words that describes it for someone who has not seen it.",
    "A dog runs across a lawn and catches a red ball in the air. Begin with the subject itself, write whole "
    "sentences in the present tense, and answer with the paragraph alone.",
    "Name the subject, then what it does from beginning to end: a dog runs.",
    "Here is a short video clip, as a video or as frames in order of time.",
    "how the camera is placed and moves, and the visual style and lighting",
    "<|im_start|>assistant A dog runs across a lawn.",
    "USER: A dog runs across a lawn and catches a red ball.",
    "A dog runs across a lawn. [INST] Describe the next one. [/INST]",
    "The dog is brown. Leave out opinions, moods, guesses about intentions, sounds, and the words video, "
    "clip, image and frame.",
]
NOT_ECHOED = [
    "A brown dog runs across a lawn, jumps, and catches a red ball in the air.",
    "The camera moves slowly from left to right; the visual style is that of an old film.",
    "From beginning to end a potter shapes a bowl; the background is a white wall.",
    "The background, the camera and the lighting stay the same while a clock hand goes round.",
    "A picture of a horse is painted on the side of a van that waits at a crossing.",
    "A teacher writes one paragraph on the blackboard in white chalk and underlines a word.",
    "Someone who has a red umbrella crosses a square with the crowd.",
    "A frame carpenter places a clip at the end of a wooden bar.",
    "A cat sleeps.",
    "Two children in material of many colours dance; their clothing swings, and the lights change position.",
    "A user of a wheelchair rolls up a ramp: an assistant holds the door.",
    "An image stabiliser is taken apart on a bench, its parts laid out in order.",
]

BOILER = [
    "The video shows a man walking along a beach.",
    "This short video clip begins with a close-up of a flower.",
    "In this video, a woman cooks pasta in a small kitchen.",
    "In the image, there is a red car.",
    "Here is a detailed description of the clip: a train leaves a station.",
    "Here's a caption for the video: a train leaves a station.",
    "Sure! A train leaves a station in the rain.",
    "Certainly, here is the paragraph you asked for. A train leaves.",
    "**Caption:** A train leaves a station in the rain.",
    "Based on the frames provided, a train leaves a station.",
    "We can see a train that leaves a station.",
    "The first frame shows a train, and the last one an empty platform.",
    "A video of a cat that sits on a piano.",
    "Frame 1: a train stands at a platform. Frame 2: it leaves.",
    "These images depict a market in the early morning.",
    "The scene is set in a market in the early morning.",
    "Throughout the footage, a drone circles a lighthouse.",
    "The sequence of frames captures a train that leaves.",
    "Video shows a train that leaves a station.",
    "Title: The Last Train",
]
NOT_BOILER = [
    "A man walks along a beach and picks up a shell.",
    "Sure-footed goats climb a rock face, one after the other.",
    "The video store on the corner opens, and its neon sign lights up.",
    "In this video game arcade, rows of machines blink in blue and red.",
    "A video camera on a tripod stands in an empty room.",
    "The picture frame on the wall tilts as a train passes, and dust falls from it.",
    "A photograph of a child hangs above a fireplace in which logs burn.",
    "The shot putter turns twice and throws.",
    "Frames of eyeglasses lie in a row on a counter.",
    "In the picture window of a cottage, a cat stretches.",
    "The scene painter climbs a ladder and mixes two greens.",
    "Great white sharks circle a cage in clear water.",
    "Here and there, snow lies on a ploughed field.",
    "Image sensors move along a conveyor belt beneath a white lamp.",
    "A close-up shot of hands that knead dough on a floured table.",
    "The man in the picture hat shows a card to the audience.",
    "Okra and peppers are sliced on a wooden board.",
]

TRUNCATED = [
    ("A man walks along a beach and", False),
    ("A man walks along a beach and picks up a", False),
    ("A man walks along a beach,", False),
    ("A man walks along a beach. He picks up a shell and puts it into his", False),
    ("A man walks along a beach:", False),
    ("A man walks along a beach...", False),
    ("A man walks along a beach…", False),
    ("A man wears a coat (grey, with large", False),
    ('A sign reads "Closed', False),
    ("A man walks along a beach.", True),
    ("A man walks. - a shell - a dog", False),
    ("The camera pans to the left, revealing 3", False),
    ("", False),
    ("   ", False),
]
NOT_TRUNCATED = [
    ("A man walks along a beach.", False),
    ("A runner throws up her arms and shouts!", False),
    ('A sign reads "Closed."', False),
    ('A sign reads "Coming soon..."', False),
    ("A crowd holds up a banner that says “Where is the money?”", False),
    ("A car turns into 5th Ave.", False),
    ("A man wears a coat (grey, with large buttons).", False),
    ("A man wears a coat. (It is grey.)", False),
    ("The clock jumps from 3.14 to 3.15.", False),
    ("一只猫睡在红色的椅子上。", False),
    ("A train arrives at 9 a.m.", False),
    ("A dog runs. ", False),
    ("*A dog runs across a lawn.*", False),
    ("He asks: 'Who is there?'", False),
]

STREET = (
    "A street in the rain with two cars, a tram and a man with an umbrella who waits at the kerb. The tram "
    "stops, its doors open, and a woman in a green coat gets off with a dog. Behind them a shop window is "
    "lit in yellow. "
)
LOOPED = [
    "a dog a dog a dog a dog a dog a dog a dog a dog a dog a dog",
    "The man walks along the beach. " * 4,
    "A man walks along the beach towards the old pier. A man walks along the beach towards the old pier.",
    "very " * 15 + "large waves.",
    "A man stands in a room. There is a table, " + "a chair, a lamp, a chair, a lamp, " * 8,
    STREET + "The camera stays where it is. " + "The light changes. The light changes. " * 5,
    "1. a tree 2. a tree 3. a tree 4. a tree 5. a tree 6. a tree",
    "A dog runs" + "!" * 40,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "一只猫一只猫一只猫一只猫一只猫一只猫一只猫一只猫",
    "The camera pans to the left and then to the right, and then to the left and then to the right, and then "
    "to the left and then to the right.",
    "red, red, red, red, red, red, red, red, red, red",
]
NOT_LOOPED = [
    "A very, very, very small dog sits next to a very large one.",
    "A red car passes a red bus, a red lorry and a red bicycle.",
    "A man walks along the beach. The man stops, and the man's dog runs along the beach without him.",
    "There is a tree on the left, a tree on the right, and a tree in the back of the garden.",
    "Row after row of vines runs down the hill; row after row of pickers follows.",
    "A clock strikes; the hands of the clock move; the shadow of the clock moves with its hands.",
    "A crowd shouts 'Go, go, go!' as a cyclist passes.",
    "Waves roll in.",
    "A dog.",
    "The woman looks to the left, looks to the right, and crosses the road to the left of the bus.",
    STREET
    + "The camera stays where it is while the man folds his umbrella and gets on the tram, which leaves.",
    "一只猫睡在红色的椅子上，一只狗躺在地上，窗外下着雨。",
    "A pan of the camera to the right ends ... and a door opens.",
]

FOREIGN = [
    "Ein Mann geht am Strand entlang und hebt eine Muschel auf.",
    "Un homme marche sur la plage et ramasse un coquillage.",
    "Un hombre camina por la playa y recoge una concha.",
    "Um homem caminha na praia e apanha uma concha.",
    "Un uomo cammina sulla spiaggia e raccoglie una conchiglia con la mano.",
    "Een man loopt over het strand en raapt een schelp op.",
    "一个男人在海滩上散步，捡起一个贝壳。",
    "Мужчина идёт по пляжу и поднимает ракушку.",
    "男の人が浜辺を歩いて、貝殻を拾います。",
    "رجل يمشي على الشاطئ ويلتقط صدفة.",
    "Mężczyzna idzie po plaży i podnosi muszlę, która leży na piasku przy wodzie.",
    "A man 走在海滩上 and 捡起了一个很大的白色贝壳然后把它放进口袋里。",
    "Seorang pria berjalan di pantai dan mengambil kerang yang besar dari pasir.",
    "Mies kävelee rannalla ja poimii simpukan hiekasta, jonka hän panee taskuunsa hymyillen aurinkoon.",
    "12 34 56 ...",
    "",
]
ENGLISH = [
    "A man walks along a beach and picks up a shell.",
    "Waves roll in.",
    "Red bicycle, brick wall.",
    'A neon sign reads "Boulangerie de la Gare" above a shop with a green door.',
    "Dancers celebrate the Día de los Muertos in a square in Oaxaca, with painted faces and marigolds.",
    "A man in a kimono bows in front of an izakaya whose lantern says 居酒屋.",
    "A waiter serves crème brûlée and café au lait to a couple on the terrace of a brasserie.",
    "Il Duomo di Firenze rises over the roofs of the old town at dawn.",
    "The chef folds the dough, cuts it into strips and hangs them over a wooden rail to dry.",
    "A 1967 Volkswagen climbs the road to the pass; snow lies on both sides of it.",
    "A girl in a dirndl and a boy in lederhosen dance on a stage made of barrels.",
    "Kayak; rapids; spray.",
    "Der Spiegel, a magazine, lies on a table next to a cup of tea.",
    "A crowd waves flags with the word «Свобода» on them in front of the parliament.",
]

TOO_LONG = " ".join(f"word{k}" for k in range(401))
BAD_LENGTH = [
    "",
    " ",
    "A",
    "A dog.",
    "Dog runs!",
    "...",
    "12",
    "— ! —",
    "狗。",
    "Nothing",
    TOO_LONG,
    "A dog runs. " * 200,
    "一" * 401,
]
GOOD_LENGTH = [
    "A dog runs.",
    "Dogs can't swim",
    "A black-and-white film",
    "一只猫睡在椅子上。",
    "Waves roll in and out.",
    " ".join(f"word{k}" for k in range(400)),
    "A dog runs. " * 100,
    "Three men, two dogs, one boat.",
    "L'homme s'assied ici.",
    "A train leaves a station in the rain.",
    "猫が椅子で寝ている。",
]


ALONG = [1.0, 0.0, 0.0, 0.0]
APART = [  # cosine to ALONG below 0.2
    [0.0, 1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0, 0.0],
    [0.1, 1.0, 0.0, 0.0],
    [0.19, 0.98, 0.0, 0.0],
    [1.0, 3.0, 3.0, 3.0],
    [-0.5, 0.1, 0.1, 0.1],
    [0.0, 0.0, 0.0, 1e-9],
    [1.0, 100.0, 0.0, 0.0],
    [0.0, 5e8, 5e8, 0.0],
    [-0.2, 0.0, 0.9, 0.1],
]
TOGETHER = [  # at least 0.2
    [1.0, 0.0, 0.0, 0.0],
    [5.0, 0.0, 0.0, 0.0],
    [0.21, 0.97, 0.0, 0.0],
    [1.0, 1.0, 1.0, 1.0],
    [1.0, -1.0, 1.0, -1.0],
    [0.25, 0.0, 0.0, 0.96],
    [1e-9, 0.0, 0.0, 0.0],
    [3e8, 1e8, 0.0, 0.0],
    [1.0, 2.0, 2.0, 2.0],
    [0.9, 0.0, -0.4, 0.0],
]
SIMILAR = {"caption.similarity": {"min": 0.2}}  # without a default, because the scale depends on the model


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal(text: str) -> None:
    assert broken("refusal", measures.refusal(text))


@pytest.mark.parametrize("text", NOT_REFUSED)
def test_no_refusal(text: str) -> None:
    assert not broken("refusal", measures.refusal(text))


@pytest.mark.parametrize("text", ECHOED)
def test_an_echo_of_the_prompt(text: str) -> None:
    assert broken("echo", measures.echo(text, DETAILED))


@pytest.mark.parametrize("text", NOT_ECHOED)
def test_no_echo_of_the_prompt(text: str) -> None:
    assert not broken("echo", measures.echo(text, DETAILED))


@pytest.mark.parametrize("text", BOILER)
def test_boilerplate(text: str) -> None:
    assert broken("boilerplate", measures.boilerplate(text))


@pytest.mark.parametrize("text", NOT_BOILER)
def test_no_boilerplate(text: str) -> None:
    assert not broken("boilerplate", measures.boilerplate(text))


@pytest.mark.parametrize(("text", "hit_limit"), TRUNCATED)
def test_truncated(text: str, hit_limit: bool) -> None:
    assert broken("truncated", measures.is_truncated(text, hit_limit))


@pytest.mark.parametrize(("text", "hit_limit"), NOT_TRUNCATED)
def test_not_truncated(text: str, hit_limit: bool) -> None:
    assert not broken("truncated", measures.is_truncated(text, hit_limit))


@pytest.mark.parametrize("text", LOOPED)
def test_repetition(text: str) -> None:
    assert broken("repetition", measures.repetition(text))


@pytest.mark.parametrize("text", NOT_LOOPED)
def test_no_repetition(text: str) -> None:
    assert not broken("repetition", measures.repetition(text))


@pytest.mark.parametrize("text", FOREIGN)
def test_not_in_english(text: str) -> None:
    assert broken("language", language(text))


@pytest.mark.parametrize("text", ENGLISH)
def test_in_english(text: str) -> None:
    assert not broken("language", language(text))


@pytest.mark.parametrize("text", BAD_LENGTH)
def test_too_short_or_too_long(text: str) -> None:
    assert broken("words", measures.words(text))


@pytest.mark.parametrize("text", GOOD_LENGTH)
def test_a_good_length(text: str) -> None:
    assert not broken("words", measures.words(text))


@pytest.mark.parametrize("name", [*CHECKS, "similarity"])
def test_there_are_at_least_ten_examples_of_each_kind(name: str) -> None:
    bad, good = {
        "refusal": (REFUSED, NOT_REFUSED),
        "echo": (ECHOED, NOT_ECHOED),
        "boilerplate": (BOILER, NOT_BOILER),
        "truncated": (TRUNCATED, NOT_TRUNCATED),
        "repetition": (LOOPED, NOT_LOOPED),
        "language": (FOREIGN, ENGLISH),
        "words": (BAD_LENGTH, GOOD_LENGTH),
        "similarity": (APART, TOGETHER),
    }[name]
    assert len(bad) >= 10
    assert len(good) >= 10


@pytest.mark.parametrize("embedding", APART)
def test_a_caption_of_another_clip(embedding: list[float]) -> None:
    assert broken("similarity", measures.similarity(embedding, ALONG), SIMILAR)


@pytest.mark.parametrize("embedding", TOGETHER)
def test_a_caption_of_this_clip(embedding: list[float]) -> None:
    assert not broken("similarity", measures.similarity(embedding, ALONG), SIMILAR)


def test_similarity_is_the_cosine_for_any_lengths_and_types() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=512), random.normal(size=512)
    expected = sum(x * y for x, y in zip(a, b, strict=True)) / (sum(a * a) * sum(b * b)) ** 0.5
    assert measures.similarity(a, b) == pytest.approx(expected, abs=1e-12)
    assert measures.similarity(7 * a, b / 3) == pytest.approx(expected, abs=1e-12)
    assert measures.similarity(a.astype(np.float16), b) == pytest.approx(expected, abs=1e-3)
    assert -1 <= measures.similarity(a, -a) <= measures.similarity(a, a) <= 1


@pytest.mark.parametrize(
    ("a", "b"), [([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [np.nan, 0.0]), ([1.0], [1.0, 0.0]), ([], [])]
)
def test_embeddings_without_a_direction_are_an_error(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="embedding"):
        measures.similarity(a, b)


GOOD = (
    "A brown dog runs across a lawn, jumps, and catches a red ball in the air. Behind it a hedge and a white "
    "wall lie in the sun, and a child in a yellow coat claps its hands. The camera follows the dog from the "
    "side at the height of its head."
)


def test_a_good_caption_breaks_no_default_rule() -> None:
    for prompt in PROMPTS.values():
        measured = measure(GOOD, prompt=prompt)
        assert set(measured) == set(CHECKS)
        assert failing(measured, DEFAULT_RULES) is None


def test_measure_uses_the_truncated_flag_and_the_wanted_language() -> None:
    assert measure(GOOD, truncated=True)["truncated"] == 1
    assert failing(measure(GOOD, wanted="de"), DEFAULT_RULES) == "caption.language"
    assert "language" not in measure(GOOD, wanted=None)
    assert measure(DETAILED, prompt=DETAILED)["echo"] == 1
    assert measure(DETAILED)["echo"] == 0


def test_captions_by_people_need_no_full_stop() -> None:
    assert measure("red car, rain", kind="sidecar")["truncated"] == 0
    assert measure("red car, rain", kind="short")["truncated"] == 1
    assert measure("red car, rain", kind="sidecar", truncated=True)["truncated"] == 1


def test_a_structured_caption_is_judged_by_its_values() -> None:
    whole = json.dumps({"subject": "A dog runs.", "camera": "The camera is still."})
    assert failing(measure(whole, kind="structured"), DEFAULT_RULES) is None
    assert measure(whole, kind="structured")["words"] == 7
    assert measure(whole[:-5], kind="structured")["truncated"] == 1
    assert measure(json.dumps(["A dog runs."]), kind="structured")["truncated"] == 1
    refused = json.dumps({"subject": "I cannot see the video.", "camera": "Still."})
    assert failing(measure(refused, kind="structured"), DEFAULT_RULES) == "caption.refusal"


@pytest.mark.parametrize("name", CHECKS)
def test_the_default_rules_name_every_check(name: str) -> None:
    assert set(DEFAULT_RULES[f"caption.{name}"]) <= {"min", "max"}
    assert len(DEFAULT_RULES) == len(CHECKS)


@pytest.mark.parametrize("wanted", LANGUAGES)
def test_every_known_language_differs_from_english(wanted: str) -> None:
    if wanted != "en":
        assert language(GOOD, wanted) < 0.5
    assert 0 <= language("", wanted) <= 1


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("de", "Ein brauner Hund läuft über den Rasen und fängt einen roten Ball in der Luft."),
        ("fr", "Un chien brun court sur la pelouse et attrape une balle rouge dans les airs."),
        ("es", "Un perro marrón corre por el césped y atrapa una pelota roja en el aire."),
        ("it", "Un cane marrone corre sul prato e prende una palla rossa in aria con la bocca."),
        ("pt", "Um cão castanho corre pelo relvado e apanha uma bola vermelha no ar com a boca."),
        ("nl", "Een bruine hond rent over het gras en vangt een rode bal in de lucht."),
        ("pl", "Brązowy pies biegnie po trawniku i łapie czerwoną piłkę, która jest w powietrzu."),
        ("zh", "一只棕色的狗跑过草坪，在空中接住了一个红色的球。"),
        ("ja", "茶色の犬が芝生を走り、空中で赤いボールをくわえます。"),
        ("ko", "갈색 개가 잔디밭을 달려 공중에서 빨간 공을 잡는다."),
        ("ru", "Коричневая собака бежит по газону и ловит красный мяч в воздухе."),
        ("hi", "एक भूरा कुत्ता लॉन पर दौड़ता है और हवा में लाल गेंद पकड़ता है।"),
    ],
)
def test_other_languages_can_be_wanted(wanted: str, text: str) -> None:
    assert language(text, wanted) >= 0.5
    assert language(text, "en") < 0.5


def test_the_error_for_an_unknown_language_names_the_known_languages() -> None:
    with pytest.raises(ValueError, match=r"'tlh'.* en, de"):
        language("nuqneH", "tlh")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.text(max_size=100))
def test_every_check_of_any_text_is_within_its_range(text: str, prompt: str) -> None:
    measured = measure(text, prompt=prompt)
    assert measured.pop("words") >= 0
    assert all(0 <= value <= 1 for value in measured.values())
    assert all(type(value) is float for value in measured.values())


@pytest.mark.parametrize(
    "piece", ["a ", "'", "' ", '"', "“", "<|", "The video ", "video image ", "I ", "sorry, but ", "x"]
)
def test_no_text_takes_long(piece: str) -> None:
    """A server may send any text."""
    text = piece * (20_000 // len(piece))
    start = time.perf_counter()
    measure(text, prompt=DETAILED)
    assert time.perf_counter() - start < 5
