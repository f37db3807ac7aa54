"""The configuration: shipped files, what is refused and how, overrides, DeepSpeed's settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmfusion import Pipeline
from mmfusion.config import EvaluationConfig, Sampling, build, load, save
from mmfusion.config.sampling import OF_PICTURES, OF_TEXTS
from mmfusion.data_pipelines.preflight import check_data
from mmfusion.errors import UserError
from mmfusion.eval.clip import find as find_clip
from mmfusion.eval.extractors import make_extractor
from mmfusion.overrides import read_override, read_yaml
from mmfusion.training.engine import deepspeed_config, precision

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_parse_and_come_back_from_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where none of their data are
    config = load(str(CONFIGS / name))
    assert load(name) == load(name.removesuffix(".yaml")) == config
    save(config, tmp_path / "made" / "config.yaml")
    assert load(str(tmp_path / "made" / "config.yaml")) == config
    model = config.model_part()
    assert json.loads(model.model_dump_json()) == model.model_dump()
    assert build(type(model), model.model_dump(), "config.json") == model
    for world in (1, 2):
        assert deepspeed_config(config, world)["train_micro_batch_size_per_gpu"] >= 1


def test_xl_is_the_papers_model() -> None:
    """Section 4: 1280 wide, 20 heads, 64 label tokens, KL-16 latents of 16 x 16 tokens."""
    config = load("mm_xl")
    assert (config.decoder.width, config.decoder.heads, config.decoder.depth) == (1280, 20, 32)
    assert (config.decoder.label_tokens, config.image.grid) == (64, (16, 16))
    assert (config.image.latent_dim, config.train.ema) == (16, 0.9999)
    assert config.train.betas == [0.9, 0.95]
    assert {source.task for source in config.data.sources} == {
        "class_to_image", "text_to_image", "image_to_text", "interleaved",
    }  # fmt: skip


# A config on top of another


def test_a_config_says_how_it_differs_from_its_base(tmp_path: Path) -> None:
    mine = "base: tiny\ntrain: {lr: 5e-4}\nclasses: [one]\nevaluation: null\n"
    (tmp_path / "mine.yaml").write_text(mine, encoding="utf-8-sig")
    (tmp_path / "tiny2.yaml").write_text("base: mine\ndecoder: {depth: 3}", encoding="utf-8")
    config, plain = load(str(tmp_path / "tiny2.yaml"), ["train.steps=7"]), load("tiny")
    assert config.train == plain.train.model_copy(
        update={"lr": 5e-4, "steps": 7, "output": "runs/tiny2"}
    )
    assert config.decoder == plain.decoder.model_copy(update={"depth": 3})
    assert (config.classes, config.evaluation) == (["one"], None)
    assert config.data == plain.data


def test_what_belongs_to_the_base_alone_is_not_inherited(tmp_path: Path) -> None:
    """The output never; what goes with its data where none of its shards are read."""
    source = "{name: draw, task: text_to_image, shards: SHARDS}"
    text = "base: digits\ndata: {rows: 8, micro_rows: 8, sources: [SOURCE]}\n"
    for name, shards in (("other", "mine/*.tar"), ("same", "runs/digits/data/train-*.tar")):
        made = text.replace("SOURCE", source).replace("SHARDS", shards)
        (tmp_path / f"{name}.v2.yaml").write_text(made, encoding="utf-8")
    (tmp_path / "lr.0.5").write_text("base: tiny")
    assert load(str(tmp_path / "lr.0.5")).train.output == "runs/lr.0.5"
    (tmp_path / "last.yaml").write_text("base: other.v2\nclasses: [a]\n", encoding="utf-8")
    plain = load("digits")
    other, same, last = (load(str(tmp_path / f"{n}.yaml")) for n in ("other.v2", "same.v2", "last"))
    assert [c.train.output for c in (other, same, last)] == [
        "runs/other.v2", "runs/same.v2", "runs/last",
    ]  # fmt: skip
    left_out = (other.text, other.data.pipeline, other.evaluation)
    assert (*left_out, other.classes) == (None, None, None, [])
    assert (other.train.sheet_prompts, other.data.rows) == ([], 8)
    assert (other.train.max_minutes, same.train.max_minutes) == (None, plain.train.max_minutes)
    kept = ("decoder", "diffusion", "generation", "image", "row_length")
    assert all(getattr(other, key) == getattr(plain, key) for key in kept)
    assert same.model_part() == plain.model_part()
    assert (same.data.pipeline, same.train.sheet_prompts) == ("digits", plain.train.sheet_prompts)
    assert last == other.model_copy(update={"classes": ["a"], "train": last.train})


def test_a_codec_fitted_to_the_bases_pictures_is_not_inherited(tmp_path: Path) -> None:
    source = "{name: a, task: class_to_image, shards: mine/*.tar}"
    (tmp_path / "mine.yaml").write_text(
        f"base: emoji_small\ndata: {{sources: [{source}]}}\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"mine\.yaml: image: codec linear needs `linear`"):
        load(str(tmp_path / "mine.yaml"))
    mine = load(str(tmp_path / "mine.yaml"), ["image.linear=own.safetensors"])
    codec = {"linear": "own.safetensors"}
    assert mine.image == load("emoji_small").image.model_copy(update=codec)


def test_a_tokenizer_and_classes_that_were_not_inherited_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    entries = [f"{{name: {t}, task: {t}, shards: {tmp_path}/a.tar}}"
               for t in ("text_to_image", "class_to_image")]  # fmt: skip
    mine = f"base: digits\ndata: {{sources: [{', '.join(entries)}]}}\n"
    (tmp_path / "mine.yaml").write_text(mine, encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)text\.tokenizer: .*tokenizer --shards.*classes: "):
        check_data(load(str(tmp_path / "mine.yaml")), "mine")


def test_a_file_of_its_name_hides_no_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load("digits").decoder
    for name in ("digits", "tiny"):
        Path(name).write_text("no config")
    Path("digits.yaml").write_text("base: digits\nseed: 5\n")
    Path("mine.yaml").write_text("base: tiny\nseed: 6\n")
    assert load("digits").seed != 5
    assert (load("digits.yaml").seed, load("digits.yaml").decoder) == (5, shipped)
    assert load("mine.yaml").seed == 6
    with pytest.raises(UserError, match="a config is a mapping"):
        load("./digits")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: mine", "is its own base"),
        ("base: other", "is its own base"),
        ("base: nowhere", r"mine\.yaml: base: config nowhere: no such file"),
        ("base: [tiny]", "expected the name of a config"),
        ("base: tiny\ndecoder: {base: tiny}", r"decoder\.base"),
    ],
)
def test_a_base_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "other.yaml").write_text("base: mine", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load(str(tmp_path / "mine.yaml"))


# What is refused, and how


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.checkpoint_activations=high", "train.checkpoint_activations"),  # one of two types
        ("generation.edit.order=spiral", "generation.edit.order"),
        ("train.learning_rate=1e-3", "train.learning_rate"),  # unknown keys
        ("lr=1e-3", "lr"),
        ("data.sources.0.shard=x", "data.sources.0.shard"),
        ("generation.class_to_image.steps=3", "generation.class_to_image.steps"),
        ("train.lr=fast", "train.lr"),  # wrong types
        ("train.lr='1e-3'", "train.lr"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=true", "train.steps"),
        ("data.rows=[4]", "data.rows"),
        ("image=8", "image"),
        ("text.tokenizer=", "text.tokenizer"),
        ("classes=zero", "classes"),
        ("train.betas=[0.9]", "train.betas"),
        ("train.lr=-1", "train.lr"),  # wrong values
        ("train.lr=.nan", "train.lr"),
        ("train.lr=.inf", "train.lr"),
        ("train.zero_stage=4", "train.zero_stage"),
        ("diffusion.dropout=1", "diffusion.dropout"),
        ("image.codec=vea", "image.codec"),
        ("image.patch=3", "image"),  # values that do not go together
        ("decoder.heads=3", "decoder"),
        ("decoder.kv_heads=3", "decoder"),
        ("image.codec=vae", "image"),
        ("data.sources.1.name=class", "data"),
        ("generation.edit.guidance_interval=[0.5, 0.1]", "generation.edit"),
        ("diffusion.path=flow", "diffusion"),
        ("decoder.time_term=false", "(top)"),  # learned positions: text would have none
    ],
)
def test_a_wrong_value_is_refused_by_its_key(override: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        load("tiny", [override])
    lines = [line.split(": ") for line in str(caught.value).splitlines()]
    assert any(f"the command line, {override}" in line[0] and line[1] == named for line in lines)
    assert len(lines) == 1


def test_what_is_wrong_is_blamed_on_where_it_was_given(tmp_path: Path) -> None:
    """A value that is wrong in two places is of the place that is read last; all are named."""
    below, mine = tmp_path / "below.yaml", tmp_path / "mine.yaml"
    below.write_text("base: tiny\ntrain: {warmup: -1, ema: 2, decya: 1}\n", encoding="utf-8")
    mine.write_text("base: below\ntrain: {steps: few, ema: 3}\ndecoder: {heads: 2}\n", "utf-8")
    with pytest.raises(UserError) as caught:
        load(str(mine), ["train.keep=0", "decoder.heads=5", "train.sav_every=5"])
    said = {line.split(": ")[1]: line.split(": ")[0] for line in str(caught.value).splitlines()}
    given = "the command line, decoder.heads=5"
    assert said.pop("decoder") == f"{CONFIGS / 'tiny.yaml'} and {mine} and {given}"
    assert said == {
        **dict.fromkeys(("train.warmup", "train.decya"), str(below)),
        **dict.fromkeys(("train.steps", "train.ema"), str(mine)),
        "train.keep": "the command line, train.keep=0",
        "train.sav_every": "the command line, train.sav_every=5",
    }


def test_a_missing_key_is_blamed_on_what_gave_its_section(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1\ndata: {capacity: {text: 1}}\n", "utf-8")
    given = r"mine\.yaml and the command line, data\.capacity\.label=3: data\.capacity\.noisy"
    with pytest.raises(UserError, match=given):
        load(str(tmp_path / "mine.yaml"), ["data.capacity.label=3"])


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("train.save_evry", "train.save_every"),
        ("text_weight", "train.text_weight"),
        ("tarin.warmup", "train.warmup"),
        ("difusion.weight_start", "diffusion.weight_start"),
        ("decoder.heds", "decoder.heads"),
        ("data.sources.3.taks", "data.sources.3.task"),
        ("evaluation.digits.edit", "evaluation.digits.edits"),
        ("generation.edit.gidance", "generation.edit.guidance"),
    ],
)
def test_the_nearest_key_is_named(unknown: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"{unknown}: .*did you mean {meant}\?"):
        load("tiny", [f"{unknown}=1"])
    with pytest.raises(UserError, match=r"zzz: there is no such key \(choose one of output, "):
        load("tiny", ["train.zzz=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "key=value"),
        ("train.lr.x=1", "train.lr.x=1: x is not in a section"),
        ("seed.x.y=1", "seed.x.y=1: x is not in a section"),
        ("data.sources.4.shards=x", "4 entries has no entry 4"),
        ("data.sources.first.shards=x", "no entry first"),
        ("data.sources.²=x", "no entry"),
        ("train.betas=[0.9", "not valid YAML"),
        ("seed=010", "seed: Input should be a valid integer"),
        ("train.max_minutes=1:30", "train.max_minutes: Input should be a valid number"),
        ("train.steps=", "give the value after the =, without a space"),
        ("train.max_minutes=", "give the value after the ="),  # null is written out
        ("train.betas.0=0.8", "no list is given there"),  # of a default
    ],
)
def test_a_bad_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load("tiny", [override])
    assert message in str(caught.value)
    assert override.partition("=")[0].split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mapping"),
        (b"- a\n- b\n", "mapping"),
        (b"seed: [1\n", "not valid YAML"),
        (b"seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (b"seed: \xff\xfe\n", "wrong.yaml"),
        (b"train: &t {x: *t}\n", "not valid YAML"),
        (b"seed: 1\n", "row_length: Field required"),
    ],
)
def test_a_file_that_is_no_config_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_config_lists_the_shipped_ones(tmp_path: Path) -> None:
    for name in ("huge", str(tmp_path / "huge.yaml"), str(tmp_path), ""):
        with pytest.raises(UserError) as caught:
            load(name)
        assert all(shipped in str(caught.value) for shipped in SHIPPED)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("diffusion.dropout=0", "dropout"),
        ("diffusion.timesteps=3", "num_inference_steps"),
        ("generation.class_to_image.ar_steps=17", "ar_steps"),
        ("generation.class_to_image.ar_sizes=[3, 4]", "ar_sizes"),
    ],
)
def test_defaults_that_cannot_be_sampled_are_refused(override: str, named: str) -> None:
    """Or the run would stop at its first sample sheet, after a thousand steps, and ever again."""
    with pytest.raises(UserError, match=named):
        load("tiny", [override])


def test_a_model_without_dropout_is_sampled_without_guidance() -> None:
    quiet = [f"generation.{t}.guidance=1" for t in ("class_to_image", "text_to_image", "edit")]
    load("tiny", ["diffusion.dropout=0", "generation.interleaved.guidance=1", *quiet])


# Overrides


def test_overrides_reach_sections_lists_and_what_is_not_there() -> None:
    config = load(
        "tiny",
        [
            "train.lr=3e-4",
            "data.sources.2.shards=elsewhere/*.tar",
            "train.max_minutes=9",
            "data.capacity={text: 1, label: 2, image: 3, noisy: 4, predict: 5}",
            "train.sheet_prompts=[a, 'b: c', null is not text, yes, 1e3, 2024]",
            "evaluation=null",
            "generation.edit.scheduler=null",
            "generation.class_to_image.guidance=3.0",  # tiny.yaml writes three with one alias
            "decoder.kv_heads=1",
            "train.output=a=b",
        ],
    )
    assert config.train.lr == 3e-4
    assert load("digits", ["train.betas.1=0.99"]).train.betas == [0.9, 0.99]
    assert config.train.max_minutes == 9
    assert config.data.capacity is not None
    assert config.data.capacity.model_dump() == {
        "text": 1, "label": 2, "image": 3, "noisy": 4, "predict": 5,
    }  # fmt: skip
    assert config.train.sheet_prompts == [
        "a", "b: c", "null is not text", "yes", "1e3", "2024",
    ]  # fmt: skip
    assert config.evaluation is None
    assert config.train.output == "a=b"
    plain = load("tiny")
    assert [s.shards for s in config.data.sources][2] == "elsewhere/*.tar"
    assert config.data.sources[:2] == plain.data.sources[:2]
    assert config.diffusion == plain.diffusion
    assert config.generation.class_to_image.guidance == 3
    assert config.generation.text_to_image == plain.generation.text_to_image
    unset = load("mm_xl", ["classes_file=null", "class_count=null", "train.output=null"])
    assert (unset.classes_file, unset.train.output) == (None, "null")


ODD = [
    "runs/a #b", "1e3", "0x10", "2024-01-01", "yes", "off", "none", "[x]", "{y}", "a: b", "*star",
    "&and", "!tag", "'one", '"two"', "${HOME}", "%s", "@at", "`tick`", "- dash", "? ask", "| bar",
    "a=b=c", "back\\slash", "ünï", "x ~", "./~/x", "#",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_text_is_taken_as_it_is_written(text: str, tmp_path: Path) -> None:
    """Paths, patterns, optional ones, and entries of lists; read and written again."""
    config = load(
        "tiny",
        [
            f"train.output={text}",
            f" text.tokenizer = {text} ",
            f"data.sources.1.shards={text}",
            f"classes.3={text}",
            f"image.vae={text}",
            f"evaluation.class_to_image.reference={text}",
        ],
    )
    assert config.evaluation
    assert config.evaluation.class_to_image
    assert config.text
    found = [config.train.output, config.text.tokenizer, config.data.sources[1].shards]
    found += [config.classes[3], config.image.vae, config.evaluation.class_to_image.reference]
    assert found == [text] * 6
    save(config, tmp_path / "config.yaml")
    assert load(str(tmp_path / "config.yaml")) == config


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line as in a file, as far as a home is known."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("base: tiny\ntrain: {output: ~/a}\n", encoding="utf-8")
    config = load(str(tmp_path / "mine.yaml"), ["data.sources.0.shards=~/b/*.tar", "classes.0=~"])
    assert config.train.output == f"{tmp_path}/a"
    assert config.data.sources[0].shards == f"{tmp_path}/b/*.tar"
    assert config.classes[0] == "~"
    for home, path in (("", "~/x"), ("", "~"), ("here", "~/x"), (str(tmp_path), "~no-such-user/x")):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(UserError, match=r"train\.output: ~.* home") as caught:
            load("tiny", [f"train.output={path}"])
        assert path in str(caught.value)


def test_the_home_folder_in_what_evaluations_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for call in (
        lambda: make_extractor("inception:~/none.pth"),
        lambda: find_clip("ViT-B-32:~/none.pt"),
        lambda: Pipeline.from_pretrained("digits", "cpu", budget_ms=9, frontier="~/none"),
    ):
        with pytest.raises(UserError, match=f"{tmp_path}/none"):
            call()


def test_options_of_a_flat_section_are_read_by_their_type() -> None:
    read = {"guidance=2": 2, "order=raster": "raster", "order=[1, 0]": [1, 0]}
    read |= {"ar_sizes=null": None, "scheduler=1e3": "1e3", "no_such=[": "["}
    for given, value in read.items():
        assert read_override(given, Sampling) == ((given.partition("=")[0],), value)
    with pytest.raises(UserError, match=r"--set guidance: .*key=value"):
        read_override("guidance", Sampling, "--set")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("3e-4", 3e-4), ("1E5", 1e5), ("1e+3", 1e3), ("-2.5e-3", -2.5e-3),
        (".5e1", 5.0), ("1.e2", 100.0), ("1_000.5", 1000.5), ("500_000", 500_000),
        ("'1e-4'", "1e-4"), ("e4", "e4"), ("1e", "1e"), ("a1e4", "a1e4"), ("1.2.3", "1.2.3"),
        ("0", 0), ("-0.5", -0.5), ("0x1f", 31), ("010", "010"), ("1:30", "1:30"),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, value: Any) -> None:
    assert read_yaml(text, "x") == value
    assert type(read_yaml(text, "x")) is type(value)


def test_what_is_saved_reads_the_same_in_any_yaml(tmp_path: Path) -> None:
    config = load("tiny", ["train.lr=1e-5", "train.eps=1e-15", "train.output='1e3'"])
    config = config.model_copy(
        update={"classes": ["1e3", "no", "2024", "ünïcode", "a: b", "", "08", "1:30"]}
    )
    save(config, tmp_path / "config.yaml")
    assert load(str(tmp_path / "config.yaml")) == config
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text("utf-8"))
    assert plain["classes"] == config.classes
    assert float(plain["train"]["eps"]) == 1e-15


def test_a_config_cannot_be_changed() -> None:
    config = load("tiny")
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0  # type: ignore[misc]


def test_sampling_takes_no_silent_conversions() -> None:
    for wrong in ({"guidance": "2"}, {"ar_steps": 2.5}, {"ar_sizes": [3, 0]}, {"order": "spiral"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            build(Sampling, wrong, "options")


# DeepSpeed's settings


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("micro", [1, 2])
def test_deepspeed_gets_the_rows_of_a_step(world: int, micro: int) -> None:
    config = load("tiny", ["data.rows=24", f"data.micro_rows={micro}", "train.zero_stage=3"])
    made = deepspeed_config(config, world)
    each, times = made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]
    assert each == micro
    assert each * times * world == 24
    assert made["zero_optimization"]["stage"] == 3
    assert made["gradient_clipping"] == config.train.grad_clip
    assert json.loads(json.dumps(made)) == made


def test_bf16_is_refused_where_no_fp32_weights_are_kept() -> None:
    with pytest.raises(UserError, match=r"train\.zero_stage"):
        precision(load("tiny", ["train.precision=bf16", "train.zero_stage=0"]))
    assert deepspeed_config(load("tiny", ["train.precision=bf16"]), 1)["bf16"]["enabled"]
    assert not deepspeed_config(load("tiny", ["train.precision=fp32"]), 1)["bf16"]["enabled"]


def test_every_option_is_of_pictures_or_of_texts() -> None:
    assert sorted(OF_PICTURES + OF_TEXTS) == sorted(Sampling.model_fields)


VALUES = Sampling().model_dump() | {"ar_sizes": [4], "scheduler": "ddim"}


@pytest.mark.parametrize("name", OF_PICTURES + OF_TEXTS)
def test_an_evaluation_refuses_options_that_do_nothing(name: str) -> None:
    sections: dict[str, dict] = {
        "class_to_image": {}, "text_to_image": {"data": "x"}, "image_to_text": {"data": "x"},
    }  # fmt: skip
    for section, rest in sections.items():
        own = OF_TEXTS if section == "image_to_text" else OF_PICTURES
        raw = {section: {**rest, "sampling": {name: VALUES[name]}}}
        if name in own:
            assert EvaluationConfig.model_validate(raw)
            continue
        said = f"(?s){section}.*sampling: {name} would change nothing here; there are {own[0]}"
        with pytest.raises(ValueError, match=said):
            EvaluationConfig.model_validate(raw)


def test_candidates_of_a_picture_are_ranked_with_a_length_penalty() -> None:
    raw = {"data": "x", "best_of": 2, "sampling": {"length_penalty": 0.5}}
    assert EvaluationConfig.model_validate({"text_to_image": raw})
    with pytest.raises(ValueError, match="length_penalty would change nothing"):
        EvaluationConfig.model_validate({"text_to_image": raw | {"best_of": 1}})
    with pytest.raises(ValueError, match="beams would change nothing"):
        EvaluationConfig.model_validate({"text_to_image": raw | {"sampling": {"beams": 2}}})


def test_a_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("train:\n  lr: 3.0e-4\n  lr: 1\n")
    with pytest.raises(UserError, match=r"twice\.yaml(?s:.*)'lr'"):
        load(str(tmp_path / "twice.yaml"))
