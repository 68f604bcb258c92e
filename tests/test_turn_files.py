"""Turns that other tools found: RTTM, Audacity labels, TextGrids and CSV as they are written, damaged and huge.

python -m pytest tests/test_turn_files.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from praatio.data_classes.interval_tier import IntervalTier
from praatio.data_classes.point_tier import PointTier
from praatio.data_classes.textgrid import Textgrid

from exhubert.inference.turn_files import read_turns, turns_of_files, turns_version
from exhubert.segments_exhubert import Turn

ANNA, BEN = Turn(0.5, 2.0, "anna"), Turn(2.25, 4.0, "ben")
RTTM = """;; made by hand
SPKR-INFO call 1 <NA> <NA> <NA> unknown anna <NA>
SPEAKER call 1 0.5 1.5 <NA> <NA> anna <NA> <NA>

SPEAKER call 2 2.25 1.75 <NA> <NA> <NA> <NA>
SPEAKER other 1 1e0 1 <NA> <NA> SPEAKER_00 <NA> <NA>
"""


def write(path: str, text: str | bytes) -> str:
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_rttm():
    turns = {"call": [Turn(0.5, 2.0, "anna", 1), Turn(2.25, 4.0, None, 2)], "other": [Turn(1, 2, "SPEAKER_00", 1)]}
    assert read_turns(write("turns.rttm", RTTM)) == turns
    assert read_turns(write("TURNS.RTTM", "\ufeff" + RTTM.replace("\n", "\r\n"))) == turns
    assert read_turns(write("nobody.rttm", "")) == {}
    kaldi = "SPEAKER call 0   0.500   1.500 <NA> <NA> anna <NA> <NA>\n"
    assert read_turns(write("kaldi.rttm", kaldi)) == {"call": [ANNA]}


def test_audacity_labels_with_frequencies():
    text = "0.500000\t2.000000\tanna\n\\\t-1.000000\t6334.588867\n2.250000\t4.000000\tben  and\tmore\n5\t6\t\n7\t8\n"
    for each in (text, "\ufeff" + text.replace("\n", "\r\n"), text.replace(".", ",")):
        turns = [ANNA, Turn(2.25, 4, "ben and more"), Turn(5, 6), Turn(7, 8)]
        assert read_turns(write("labels.txt", each)) == {None: turns}


@pytest.mark.parametrize("form", ["long_textgrid", "short_textgrid"])
def test_textgrids_as_praatio_writes_them(form):
    grid = Textgrid(0.0, 5.0)
    grid.addTier(IntervalTier("anna", [(0.5, 2.0, 'says "item [2]:" and\nintervals [1]')], 0.0, 5.0))
    grid.addTier(IntervalTier("b\"e'n", [(2.25, 4.0, "!")], 0.0, 5.0))
    grid.addTier(PointTier("clicks", [(1.0, "click")], 0.0, 5.0))
    grid.addTier(IntervalTier("nobody", [(0.0, 5.0, "")], 0.0, 5.0))
    grid.save("turns.TextGrid", form, includeBlankSpaces=True)
    turns = {None: [ANNA, BEN._replace(speaker="b\"e'n")]}
    assert read_turns("turns.TextGrid") == turns
    text = Path("turns.TextGrid").read_text()
    for encoding in ("utf-16", "utf-8-sig"):
        content = text.replace("\n", "\r\n").encode(encoding)
        assert read_turns(write("again.textgrid", content)) == turns


def test_of_one_tier_the_texts_are_the_speakers_and_remarks_are_none():
    text = """File type = "ooTextFile"
"TextGrid" ! a remark with 7 and "quotes"
0 5 <exists>
1
"IntervalTier" "who" 0 5 3
0 2 "anna" 2 2.5 "" ! a pause
2.5 5 "ben"
"""
    assert read_turns(write("one.TextGrid", text)) == {None: [Turn(0, 2, "anna"), Turn(2.5, 5, "ben")]}


@pytest.mark.parametrize(
    "text",
    [
        "start,end,speaker\n0.5,2,anna\n2.25,4,ben\n",
        '\ufeffspeaker;other;End;START\r\n"anna";;2,0;0,5\r\n\r\nben;"a;\nb";4,0;2,25\r\n',
        "speaker\tstart\tduration\nanna\t0.5\t1.5\nben\t 2.25 \t1.75\n",
    ],
)
def test_csv_in_any_order(text):
    for name in ("turns.csv", "turns.tsv"):
        assert read_turns(write(name, text)) == {None: [ANNA, BEN]}


def test_csv_names_files_and_channels():
    text = 'file,start,end,channel\n"a, b.wav",0.5,2,1.0\nc.wav,1,2,\n"a, b.wav",0,1,2\n'
    turns = {"a, b.wav": [Turn(0.5, 2, None, 1), Turn(0, 1, None, 2)], "c.wav": [Turn(1, 2)]}
    assert read_turns(write("turns.csv", text)) == turns


GRID = '"ooTextFile" "TextGrid"\n0 5 <exists> 1\n"IntervalTier" "a" 0 5 1\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "a.json: segments are `speech`, a file of turns (.rttm, "),
        ("a.rttm", "start end\n", "a.rttm, line 1: in an .rttm a turn is a line that begins with SPEAKER"),
        ("a.rttm", "\nSPEAKER a 1 0.5\n", "a.rttm, line 2: 4 fields"),
        ("a.rttm", "SPEAKER a 1 nan 1 x x s x x\n", "a.rttm, line 1: the start is 'nan', and no number"),
        ("a.rttm", "SPEAKER a 1 1 inf x x s x x\n", "a.rttm, line 1: the duration is 'inf', and no number"),
        ("a.rttm", "SPEAKER a 1 1 -1 x x s x x\n", "a.rttm, line 1: the turn begins at 1 s and ends at 0 s"),
        ("a.rttm", "SPEAKER a 1 1 1 x x s x x\nSPEAKER a 0 1 1 x x s x x\n", "a.rttm, line 2: the channel is '0'"),
        ("a.rttm", "SPEAKER a 1.5 1 1 x x s x x\n", "a.rttm, line 1: the channel is '1.5'"),
        ("a.txt", "0\t1\tx\n2 3 y\n", "a.txt, line 2: '2 3 y' is no Audacity label"),
        ("a.txt", "0\t1\n\n3\t2\n", "a.txt, line 3: the turn begins at 3 s and ends at 2 s"),
        ("a.txt", "2.5\t2.5\tpoint\n", "a.txt, line 1: the turn begins at 2.5 s and ends at 2.5 s"),
        ("a.txt", "-1\t2\n", "a.txt, line 1: the turn begins at -1 s, before the recording"),
        ("a.txt", b"0\t1\n\x80\xff\n", "a.txt, line 2: no text in UTF-8; save it as that"),
        ("a.txt", b"0\t1\n\x00\n", "a.txt, line 2: null bytes, so it is no text"),
        ("a.txt", b"\xff\xfe0", "a.txt, line 1: no text in UTF-16"),
        ("a.csv", "", "a.csv, line 1: no header with `start` and `end`"),
        ("a.csv", "\nbegin,end\n0,1\n", "a.csv, line 2: the header needs `start` and `end`, it has 'begin, end'"),
        ("a.csv", "start,end,end\n", "a.csv, line 1: the header has 'end' twice"),
        ("a.csv", "start,end\n0,5,2,5\n", "a.csv, line 2: 4 cells, where the header has 2"),
        ("a.csv", "start,end,file\n0,1,a\n0,1, \n", "a.csv, line 3: `file` is empty"),
        ("a.csv", 'start,end,speaker\n0,1,"a\nb"\n,1,a\n', "a.csv, line 4: the start is '', and no number"),
        ("a.csv", f"start,end\n0,{'9' * 5000}\n", "a.csv, line 2: the end is '" + "9" * 40 + "'..., and no number"),
        ("a.csv", f"start,end,speaker\n0,1,{'x' * 200_000}\n", "a.csv, line 2: field larger than field limit"),
        ("a.TextGrid", "", "a.TextGrid, line 1: `ooTextFile` is missing"),
        ("a.TextGrid", '"ooTextFile"\n"PitchTier"\n', "a.TextGrid, line 2: xmin is missing"),
        ("a.TextGrid", '"Praat chronological TextGrid text file"\n', "a.TextGrid, line 1: no TextGrid"),
        ("a.TextGrid", GRID + '0 5 "anna\n', "a.TextGrid, line 4: a text without its closing quotes"),
        ("a.TextGrid", GRID + '0 "anna"\n', "a.TextGrid, line 4: a time is missing"),
        ("a.TextGrid", GRID.replace("5 1\n", "5 1e99\n") + '0 5 "a"\n', "a.TextGrid, line 4: a time is missing"),
        ("a.TextGrid", GRID + '5 0 "a"\n', "a.TextGrid, line 4: the turn begins at 5 s and ends at 0 s"),
    ],
)
def test_what_is_no_turn_is_named_with_its_line(name, content, message):
    with pytest.raises(ValueError) as raised:
        read_turns(write(name, content))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_hundred_thousand_turns():
    many = 100_000
    write("many.rttm", "".join(f"SPEAKER a 1 {k} 1 <NA> <NA> s{k % 3} <NA> <NA>\n" for k in range(many)))
    write("many.csv", "start;end;speaker\n" + "".join(f"{k};{k + 1};s{k % 3}\n" for k in range(many)))
    write("many.txt", "".join(f"{k}\t{k + 1}\ts{k % 3}\n" for k in range(many)))
    grid = GRID.replace("5 1\n", f"{many} {many}\n") + "".join(f'{k}\n{k + 1}\n"s{k % 3}"\n' for k in range(many))
    write("many.TextGrid", grid)
    expected = [Turn(k, k + 1, f"s{k % 3}") for k in range(many)]
    for name in ("many.csv", "many.txt", "many.TextGrid"):
        assert read_turns(name) == {None: expected}
    assert read_turns("many.rttm") == {"a": [turn._replace(channel=1) for turn in expected]}


def test_turns_belong_to_files_by_path_name_or_name_without_its_ending():
    write("turns.rttm", RTTM)
    turns_of = turns_of_files("turns.rttm", ["calls/call.wav", "calls/third.wav"])
    assert [turn.start for turn in turns_of("calls/call.wav")] == [0.5, 2.25]
    with pytest.raises(ValueError, match=r"no turns for it in turns\.rttm"):
        turns_of("calls/third.wav")
    write("turns.csv", "file,start,end\n./x/call.wav,0,1\ny/call.wav,1,2\nthird.flac,2,3\n")
    files = ["x/call.wav", "y/call.wav", "third.flac"]
    turns_of = turns_of_files("turns.csv", files)
    assert [turns_of(name) for name in files] == [[Turn(0, 1)], [Turn(1, 2)], [Turn(2, 3)]]
    assert turns_of_files(write("one.txt", "0\t1\tanna\n"), ["any.wav"])("any.wav") == [Turn(0, 1, "anna")]


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("turns.rttm", ["x/call.wav", "y/call.wav"], r"turns\.rttm: call may be x/call\.wav or y/call\.wav"),
        ("turns.rttm", ["third.wav"], "has turns of none of the audio files: it names call, other"),
        ("one.txt", ["a.wav", "b.wav"], r"one\.txt does not say whose turns it has, and there are 2 audio files"),
        ("empty.txt", ["a.wav"], r"empty\.txt: there are no turns in it"),
        ("empty", ["a.wav"], r"empty has no turns of the audio files; for a\.wav there could be a\.rttm"),
        ("twice", ["a.wav"], r"twice has both a\.csv and a\.rttm; keep one"),
    ],
)
def test_turns_of_nobody_knows_whom(source, files, message):
    write("turns.rttm", RTTM)
    write("one.txt", "0\t1\n")
    write("empty.txt", "")
    for folder in ("empty", "twice"):
        Path(folder).mkdir()
    write("twice/a.rttm", RTTM)
    write("twice/a.csv", "start,end\n")
    with pytest.raises(ValueError, match=message):
        turns_of_files(source, files)


def test_a_folder_has_a_file_of_turns_for_each():
    Path("turns").mkdir()
    write("turns/call.rttm", RTTM)
    write("turns/b.wav.txt", "no labels")
    write("turns/silent.rttm", "")
    write("turns/bad.txt", "no labels")
    write("turns/foreign.rttm", RTTM)
    files = ["call.wav", "b.wav", "silent.wav", "bad.wav", "foreign.wav"]
    turns_of = turns_of_files("turns", files)
    assert len(turns_of("call.wav")) == 2
    assert turns_of("silent.wav") == []
    for name, message in (
        ("b.wav", "no turns for it in turns"),
        ("bad.wav", r"turns/bad\.txt, line 1"),
        ("foreign.wav", "has turns of call, other alone"),
    ):
        with pytest.raises(ValueError, match=message):
            turns_of(name)
    before = turns_version("turns", files)
    write("turns/silent.rttm", "\n")
    assert turns_version("turns", files) != before
