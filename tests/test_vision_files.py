"""Vision-language models in folders, and what is refused: each in one sentence that names the item and the numbers."""

from __future__ import annotations

import json

import pytest

from trimtab.errors import BadItem, MissingExtra, ModelError, NoChatTemplate, UsageError
from trimtab.model import load
from trimtab.pictures import PIXELS, of_file
from trimtab.steering import Steering
from trimtab.testing import TINY_VISION_FAMILIES, noise, tiny, tiny_vision, write_tiny_vision_folder
from trimtab.types import IMAGE, Example, Item, Message, Option, Picture

OPTIONS = (Option("he", "pro"), Option("she", "anti"))


def item(prompt: str, *images: Picture, name: str = "who-7") -> Item:
    return Item(name, OPTIONS, "concept", "template", True, prompt=prompt, images=images)


def chat(*turns: tuple[str, str], images: tuple[Picture, ...] = ()) -> Item:
    said = tuple(Message(role, content) for role, content in turns)
    return Item("chat-3", OPTIONS, "concept", "template", True, messages=said, images=images)


@pytest.fixture(scope="module")
def llava():
    return tiny_vision("llava")


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.linear_gradient("L").resize((21, 13)).convert("RGB").save(path)
    return of_file(path)


@pytest.mark.parametrize("family", TINY_VISION_FAMILIES)
def test_a_folder_is_loaded_with_its_processor(family, tmp_path, png):
    """What save_pretrained wrote gives the model that was written, without torchvision."""
    folder = write_tiny_vision_folder(tmp_path / family, family, seed=4)
    model, written = load(str(folder), dtype="float32", device="cpu"), tiny_vision(family, seed=4)
    assert model.sees
    assert type(model.processor).__name__ == type(written.processor).__name__
    asked = [item(f"{IMAGE}who is it?", png), chat(("user", f"{IMAGE}who?"), images=(png,)), item("who is it?")]
    for found, expected in zip(model.score(asked), written.score(asked), strict=True):
        assert found.logp == pytest.approx(expected.logp, abs=1e-4)


def test_a_model_of_words_alone_sees_nothing(llama):
    assert not llama.sees
    assert llama.processor is None


def test_an_image_shown_to_a_model_of_words_alone_is_refused(llama):
    with pytest.raises(BadItem, match=r"item 'who-7' shows 1 image.*tiny llama.*reads words alone"):
        llama.score([item(f"{IMAGE}who?", noise(8, 8))])
    with pytest.raises(BadItem, match="reads words alone"):
        llama.generate("who?", images=[noise(8, 8)])


def test_another_number_of_places_than_images_is_refused(llava):
    with pytest.raises(BadItem, match=r"item 'who-7' names 2 images by <image> and comes with 1"):
        llava.score([item(f"{IMAGE} or {IMAGE}", noise(8, 8))])
    with pytest.raises(BadItem, match=r"item 'chat-3' names 2 images"):
        llava.score([chat(("user", f"{IMAGE}{IMAGE}who?"), images=(noise(8, 8),))])
    with pytest.raises(BadItem, match=r"item 'who-7' says <image> and comes with no image"):
        llava.score([item(f"{IMAGE}who?")])
    with pytest.raises(UsageError, match="1 lists of images for 2 prompts"):
        llava.generate(["a", "b"], images=[[noise(8, 8)]])


def test_an_image_that_cannot_be_opened_names_its_item(llava, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(BadItem, match=r"item 'who-7'.*broken\.png"):
        llava.score([item("who?", of_file(broken))])


def test_words_that_stand_for_an_image_that_is_not_there_are_refused(llava, llama):
    """A fluent answer about no picture would be worse."""
    for ask in (
        lambda: llava.generate(f"{IMAGE}who"),
        lambda: llava.generate([Message("user", f"{IMAGE}who")]),
        lambda: llava.logp([f"{IMAGE}who"]),
        lambda: llava.example_tokens([Example(f"{IMAGE}who", "she")]),
    ):
        with pytest.raises(BadItem, match="says <image> and comes with no image"):
            ask()
    assert llama.generate(f"{IMAGE}who", max_new_tokens=2) is not None, "to a model of words it is a word"


def test_a_thin_image_that_its_processor_would_enlarge_beyond_measure_is_refused(llava, tmp_path):
    from PIL import Image

    path, edge = tmp_path / "thin.png", llava.processor.image_processor.size["shortest_edge"]
    long = PIXELS // edge**2 + 1
    Image.new("L", (1, long)).save(path)
    thin = item(f"{IMAGE}who", of_file(path))
    with pytest.raises(BadItem, match=rf"1 x {long:,} pixels would become {edge**2 * long:,} for .*cut it"):
        llava.encode([thin])


def test_an_item_that_leaves_no_room_for_an_answer_is_named():
    short = tiny_vision("llava", max_position_embeddings=64)
    with pytest.raises(BadItem, match=r"item 'long' has \d+ tokens; .* takes 64, answer included"):
        short.answer([item(f"{IMAGE}" + "x" * 90, noise(8, 8, 1), name="long")])


def test_more_image_tokens_than_the_context_names_the_numbers():
    model = tiny_vision("llava", max_position_embeddings=20)
    many = tuple(noise(8, 8, n) for n in range(6))
    with pytest.raises(BadItem, match=r"item 'who-7' needs \d+ tokens, 24 of them 6 images, tiny llava takes 20"):
        model.score([item("who?", *many)])


def test_a_chat_without_a_template_is_refused():
    model = tiny_vision("llava", chat=False)
    assert not model.chats
    with pytest.raises(NoChatTemplate, match=r"tiny llava has no chat template.*give a prompt"):
        model.score([chat(("user", f"{IMAGE}who?"), images=(noise(8, 8),))])


@pytest.mark.parametrize("family", TINY_VISION_FAMILIES)
def test_a_chat_is_what_the_processors_own_template_makes(family):
    """Parts in the processor's form, and images before all words where the words do not place them."""
    model = tiny_vision(family)
    said = [{"role": "user", "content": [{"type": "text", "text": "who is "}, {"type": "image"}]}]
    own = model.processor.tokenizer.apply_chat_template(
        said, chat_template=model.processor.chat_template, tokenize=False, add_generation_prompt=True
    )
    assert model.render([Message("user", f"who is {IMAGE}")]) == own
    picture = noise(8, 8)
    placed, unplaced = (
        model.encode([chat(("user", words), images=(picture,))])[0] for words in (f"{IMAGE}who?", "who?")
    )
    assert placed == unplaced
    begin = model.tokenizer.bos_token_id
    assert placed.prompt.count(begin) == 1


def test_a_template_of_plain_turns_takes_images_too():
    """A template that reads a turn as one text is given one, with the family's placeholder in it."""
    model = tiny_vision("llava")
    model.processor.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    assert model.render([Message("user", f"a {IMAGE} b")]) == "<user>a <image> b"


def test_an_instruction_goes_before_the_image(llava):
    told, plain = (llava.encode([item("who?", noise(8, 8))], words)[0] for words in ("Be fair.", None))
    assert len(told.prompt) > len(plain.prompt)
    assert sum(i > 1 << 20 for i in told.prompt) == 4


def test_generation_takes_images(llava):
    one = llava.generate(f"{IMAGE}who is", 4, images=[noise(20, 12, 1)])
    several = llava.generate([f"{IMAGE}who is", "who is"], 4, images=[[noise(20, 12, 1)], []])
    assert several == [one, llava.generate("who is", 4)]


def test_an_unknown_vision_language_family_is_refused(tmp_path):
    from transformers import Blip2Config

    Blip2Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'blip-2', which is not known here; known are .*llava"):
        load(str(tmp_path), device="cpu")


def test_a_processor_that_needs_torchvision_says_so(tmp_path):
    folder = write_tiny_vision_folder(tmp_path / "m")
    held = json.loads((folder / "processor_config.json").read_text())
    held["image_processor"]["image_processor_type"] = "MuseGlimmerImageProcessor"
    (folder / "processor_config.json").write_text(json.dumps(held))
    with pytest.raises(MissingExtra, match=r"torchvision.*none for Pillow alone"):
        load(str(folder), device="cpu")


def test_a_processor_of_another_model_is_refused():
    model = tiny_vision("llava")
    model.processor.num_additional_image_tokens = 3
    with pytest.raises((ModelError, BadItem), match="6 tokens of images for which the model has 4"):
        model.score([item("who?", noise(8, 8))])


def test_image_positions_of_a_model_of_words_alone_are_refused(llama):
    steering = Steering({"layers.0.out": ()}, {}).at("image")
    with pytest.raises(UsageError, match="shown no images"), llama.steer(steering):
        pass
    assert tiny("llama").sees is False


def test_the_command_line_shows_pictures(trimtab_cli, tmp_path, png, monkeypatch, chat_folder):
    folder = write_tiny_vision_folder(tmp_path / "llava", "llava", seed=4)
    model = load(str(folder), dtype="float32")
    base = ("--model", folder, "--dtype", "float32", "--max-new-tokens", 5)
    ran = trimtab_cli("generate", *base, "--image", png.source, "who is it?", f"see {IMAGE} here")
    expected = model.generate(["who is it?", f"see {IMAGE} here"], 5, images=[[png]] * 2)
    assert ran.code == 0, ran.err
    assert ran.out == f"who is it?{expected[0]}\nsee {IMAGE} here{expected[1]}\n"
    assert model.generate("who is it?", 5) != expected[0], "the picture makes a difference"
    lines = iter(["who?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    ran = trimtab_cli("chat", *base, "--image", png.source)
    assert f"model> {model.generate([Message('user', 'who?')], 5, images=[png]).strip()}" in ran.out
    gone = trimtab_cli("generate", *base, "--image", tmp_path / "gone.png", "who?")
    assert gone.code == 6 and "gone.png' does not exist" in gone.error
    words = trimtab_cli("generate", "--model", chat_folder, "--image", png.source, "who?")
    assert words.code == 6 and "reads words alone" in words.error
