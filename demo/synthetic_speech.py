"""Three small corpora of synthetic "emotional" speech, for the demo and for tests. No network, no recordings.

    python demo/synthetic_speech.py DIRECTORY [--clips-per-corpus N] [--seed S]

The eSpeak NG synthesiser reads everyday sentences in English, German and Polish; pitch, pitch range, rate, pauses and
voice quality follow the rules in `synthetic_speech.yaml`, one row an emotion. The data shows that a training run works.
It says nothing about recognising emotions of people.

The directions of the rules are those reported by Banse & Scherer (1996), Juslin & Laukka (2003) and, for
synthesis, Burkhardt & Sendlmeier (2000). Disgust and surprise are less settled there: their rows are our
choice, and so are all sizes, large enough for a tiny model to learn in minutes.

eSpeak NG is GPL-3.0. It comes inside the package `espeakng_loader`, which only the extra `demo` asks for:
nothing else in this project imports it.
"""

import argparse
import csv
import ctypes
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
import yaml

from exhubert.utils.command import progress_bar
from exhubert.utils.files import whole_folder

FORMAT_VERSION = 1  # raise it when the same parameters would give other files
SAMPLE_RATE = 16_000
WORDS_PER_MINUTE = 160
LEVEL_DBFS = -26.0


@dataclass(frozen=True)
class Prosody:
    """How a reading departs from a neutral one; the defaults are neutral."""

    pitch_semitones: float = 0.0  # shift of the voice's pitch
    pitch_range: float = 1.0  # factor on the pitch movements, 2 at most
    rate: float = 1.0  # factor on words per minute
    pause_seconds: float = 0.0  # added between words
    tilt_db_per_octave: float = 0.0  # above 0: tense and bright, below 0: lax and dark
    tremor_hz: float = 0.0  # of the amplitude: trembling below 10 Hz, creaky at 30 Hz, harsh at 70 Hz
    tremor_depth: float = 0.0  # 0 to 1
    breath: float = 0.0  # noise that follows the voice, as a ratio to it
    volume_db: float = 0.0  # a model that normalises its input does not see it
    ending: str = "."  # final contour: "." falls, "!" is emphatic, "?" rises


@dataclass(frozen=True)
class Corpus:
    """One language with labels and speakers of its own; every speaker is an eSpeak NG voice variant."""

    name: str
    language: str  # ISO 639-1
    voice: str
    variants: list[str]
    labels: list[str]
    text: str  # sentences, " / " between them


DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
RULES = {label: Prosody(**changes) for label, changes in DATA["rules"].items()}
CORPORA = [Corpus(text=" / ".join(values.pop("sentences")), **values) for values in DATA["corpora"]]


def make_corpora(directory: Path, clips_per_corpus: int = 480, seed: int = 0) -> list[Path]:
    """Write the corpora of `CORPORA` below `directory` and return their folders in that order.

    Each holds `metadata.csv` (file_name, label, speaker, language), `audio/*.wav` (16 kHz, mono, 16 bit),
    `README.md` and `synthesis.json`. The same seed gives the same bytes. A folder made before with the same
    parameters is returned as it is; one made with others is replaced.
    """
    cells = max(len(corpus.labels) * len(corpus.variants) for corpus in CORPORA)
    if clips_per_corpus < cells:
        raise ValueError(f"{clips_per_corpus} clips cannot cover all speakers and labels: give {cells} or more")
    if seed < 0:
        raise ValueError(f"the seed is {seed}: give 0 or more")
    try:
        version = importlib.metadata.version("espeakng_loader")
    except importlib.metadata.PackageNotFoundError:
        message = "the synthetic corpora need espeakng_loader: pip install 'exhubert[demo]'"
        raise ModuleNotFoundError(message) from None
    folders = [Path(directory, corpus.name) for corpus in CORPORA]
    for folder, corpus in zip(folders, CORPORA, strict=True):
        rules = {label: asdict(RULES[label]) for label in corpus.labels}
        parameters = {"format_version": FORMAT_VERSION, "espeakng_loader": version, "clips": clips_per_corpus}
        parameters |= {"seed": seed, **asdict(corpus), "rules": rules}
        synthesis = json.dumps(parameters, indent=2, ensure_ascii=False)
        made = folder / "synthesis.json"
        if made.is_file() and made.read_text(encoding="utf-8") == synthesis:
            continue
        if folder.exists() and not made.is_file():
            raise FileExistsError(f"{folder} is not ours to replace: move it away or choose another directory")
        with whole_folder(folder, replace=True) as new:
            (new / "audio").mkdir()
            with (new / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(("file_name", "label", "speaker", "language"))
                for file_name, label, speaker, samples in _clips(corpus, clips_per_corpus, seed):
                    soundfile.write(new / file_name, samples, SAMPLE_RATE, subtype="PCM_16")
                    table.writerow((file_name, label, speaker, corpus.language))
            rows = [("label", *asdict(Prosody())), ["---"] * (len(asdict(Prosody())) + 1)]
            rows += [(label, *rule.values()) for label, rule in rules.items()]
            lines = "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
            (new / "README.md").write_text(DATA["readme"].format(**parameters) + "\n" + lines, encoding="utf-8")
            (new / made.name).write_text(synthesis, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # made with other parameters
    return folders


def main(arguments: list[str] | None = None) -> None:
    """The command line: make the corpora, print one line for each."""
    parser = argparse.ArgumentParser(description="Make three small corpora of synthetic emotional speech.")
    parser.add_argument("directory", type=Path, help="the corpora become folders in here")
    parser.add_argument("--clips-per-corpus", type=int, default=480, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    options = parser.parse_args(arguments)
    try:
        paths = make_corpora(options.directory, options.clips_per_corpus, options.seed)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        parser.exit(1, f"{error}\n")
    for path, corpus in zip(paths, CORPORA, strict=True):
        speakers, labels = len(corpus.variants), ", ".join(corpus.labels)
        print(f"{path}: {options.clips_per_corpus} clips, {speakers} speakers, labels {labels}")


def _clips(corpus: Corpus, clips: int, seed: int) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """File name, label, speaker and samples of every clip, in turn over labels and speakers."""
    espeak = _Espeak()
    rng = np.random.default_rng([seed, CORPORA.index(corpus)])
    own_semitones = rng.uniform(-1.5, 1.5, len(corpus.variants))
    own_rate = rng.uniform(0.93, 1.07, len(corpus.variants))
    sentences = corpus.text.split(" / ")
    cells = [(speaker, label) for speaker in range(len(corpus.variants)) for label in corpus.labels]
    for clip in progress_bar(range(clips), desc=corpus.name, unit="clip"):
        take, cell = divmod(clip, len(cells))
        speaker, label = cells[cell]
        variant = corpus.variants[speaker]
        # The rule at a random strength, with jitter, on top of the speaker's own pitch and rate.
        rule, strength = RULES[label], rng.normal(1.0, 0.12)
        prosody = replace(
            rule,
            pitch_semitones=own_semitones[speaker] + rule.pitch_semitones * strength + rng.normal(0.0, 0.5),
            pitch_range=rule.pitch_range**strength * rng.normal(1.0, 0.1),
            rate=own_rate[speaker] * rule.rate**strength * rng.normal(1.0, 0.04),
            tilt_db_per_octave=rule.tilt_db_per_octave * strength + rng.normal(0.0, 0.5),
            tremor_hz=rule.tremor_hz * rng.normal(1.0, 0.08),
        )
        sentence = sentences[rng.integers(len(sentences))]
        samples = espeak.say(sentence, f"{corpus.voice}+{variant}", prosody)
        # Breath, tremor, spectral tilt and level.
        samples = samples * (1 + prosody.breath * rng.standard_normal(len(samples)))
        phase = rng.random() + np.arange(len(samples)) * prosody.tremor_hz / SAMPLE_RATE
        samples *= 1 + prosody.tremor_depth * np.sin(2 * np.pi * phase)
        octaves = np.log2(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE).clip(min=60) / 1000)
        gain = 10 ** (prosody.tilt_db_per_octave * octaves / 20)
        samples = np.fft.irfft(np.fft.rfft(samples) * gain, len(samples))
        samples *= 10 ** ((LEVEL_DBFS + prosody.volume_db) / 20) / np.sqrt(np.mean(samples**2))
        samples *= min(1.0, 0.99 / np.abs(samples).max())
        name = f"{corpus.language}_{variant}"
        yield f"audio/{name}_{label}_{take:02d}.wav", label, name, samples


class _Espeak:
    """The synthesiser, in a state that does not depend on what this process said before."""

    def __init__(self) -> None:
        import espeakng_loader

        self.data = Path(espeakng_loader.get_data_path())
        # The phases of pitch and noise live in static variables, which espeak_Terminate leaves alone. A copy
        # of the file is loaded as a library of its own, with these variables at their start.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as copy:
            self.library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), copy))
        synchronous, do_not_exit = 2, 0x8000
        self.sample_rate = self.library.espeak_Initialize(synchronous, 0, os.fsencode(self.data), do_not_exit)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        self.chunks: list[bytes] = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        def collect(samples: int | None, count: int, _events: int | None) -> int:
            if samples and count > 0:
                self.chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        self.callback = collect  # kept: the library holds no reference
        self.library.espeak_SetSynthCallback(self.callback)

    def say(self, sentence: str, voice: str, prosody: Prosody) -> np.ndarray:
        """Samples (samples,) at 16 kHz within -1..1, without the silence at both ends."""
        variant = self.data / "voices" / "!v" / voice.partition("+")[2]
        if not variant.is_file():  # eSpeak NG would fall back to the plain voice without a word
            raise ValueError(f"eSpeak NG has no voice {voice!r}: {variant} is not a file")
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(
                f"eSpeak NG cannot load the language of {voice!r} from {self.data}: it must be there, "
                "and the path shorter than 160 bytes"
            )
        # measured: 7 semitones down at 0, the voice's own pitch at 50, 9 up at 100
        pitch = 50 + 50 * prosody.pitch_semitones / (9 if prosody.pitch_semitones > 0 else 7)
        rate_id, pitch_id, range_id, word_gap_id = 1, 3, 4, 7
        for parameter, value in (
            (rate_id, WORDS_PER_MINUTE * prosody.rate),
            (pitch_id, min(max(pitch, 0), 100)),
            (range_id, min(50 * prosody.pitch_range, 100)),
            (word_gap_id, prosody.pause_seconds / 0.01),
        ):
            self.library.espeak_SetParameter(parameter, round(value), 0)
        self.chunks.clear()
        text, utf8 = (sentence + prosody.ending).encode(), 1
        self.library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, utf8, None, None)
        self.library.espeak_Synchronize()
        samples = np.frombuffer(b"".join(self.chunks), np.int16) / 32768
        loud = np.flatnonzero(np.abs(samples) > 0.01)
        if not loud.size:
            raise RuntimeError(f"eSpeak NG gave no audio for {sentence!r} with the voice {voice!r}")
        return soxr.resample(samples[loud[0] : loud[-1] + 1], self.sample_rate, SAMPLE_RATE)


if __name__ == "__main__":
    main()
