"""Scores: free of rights, named once, and read into notes once."""

import numpy as np
import pytest

from Libraries.DemoMusic.Scores import SOURCES, list_scores, load_score, read_score, rights_statement


@pytest.mark.parametrize(
    "text",
    [
        "<rights>Copyright 2004 Somebody</rights>",
        "<rights>Somebody</rights>",
        "<credit-words>&#169; 2004 Somebody</credit-words>",
        "<credit-words>PDF and music &#169; 2004 Some Body</credit-words>",
        "<credit-words>PDF &#169; 2004 Some Body, all rights reserved</credit-words>",
        "<credit-words>PDF &#169; 2004 Some Body</credit-words><rights>Copyright 2004 Some Body</rights>",
        "X:1\nZ:Somebody (c) 1999\nK:G\n",
        "!!!YEM: Rights to all derivative electronic formats reserved.",
        "<rights>CC BY-NC 4.0</rights>",
        "<rights>Creative Commons Attribution-ShareAlike</rights>",
        "<rights>Public Domain</rights><credit-words>All rights reserved</credit-words>",
    ],
)
def test_kept_rights_are_found(text):
    assert rights_statement(text)


@pytest.mark.parametrize(
    "text",
    [
        "<rights>Public Domain</rights>",
        "<rights></rights>",
        "<credit-words>© 2014, Creative Commons License (CC-BY)</credit-words>",
        "<rights>CC0</rights>",
        "<credit-words>PDF &#169; 2004 Some Body</credit-words>",
        "<credit-words>PDF ©2004 Some Body - used by permission\nwww.example.org</credit-words>",
        "X:1\nT:The Rights of Man\nK:G\n(a=g)(ed (c)A)(B^G)|\n",
    ],
)
def test_free_scores_pass(text):
    assert rights_statement(text) is None


def test_score_with_kept_rights_is_not_loaded(tmp_path, monkeypatch):
    path = tmp_path / "tune.abc"
    head, tune = "X:1\nT:Air\nM:4/4\nL:1/4\n", "K:C\nCDEF|GABc|\n"
    monkeypatch.setattr(
        "Libraries.DemoMusic.Scores.list_scores", lambda source: {"tune": (path, 0, "Nobody")}
    )
    path.write_text(head + "Z:(c) 1999 Somebody, all rights reserved\n" + tune, encoding="utf-8")
    assert load_score("tune", "airs", tmp_path) is None
    path.write_text(head + "Q:1/4=90\n" + tune, encoding="utf-8")
    score = load_score("tune", "airs", tmp_path)
    assert (score.title, score.bpm) == ("Air", 90.0)
    np.testing.assert_array_equal(score.notes[:, 2], [60, 62, 64, 65, 67, 69, 71, 72])


def test_nearly_all_chorales_are_free():
    texts = (read_score(path, tune) for path, tune, _ in list(list_scores("chorales").values())[::20])
    assert not [statement for statement in map(rights_statement, texts) if statement]


def test_every_source_has_scores_with_unique_names():
    names = [name for source in SOURCES for name in list_scores(source)]
    assert len(set(names)) == len(names) > 2000


@pytest.mark.parametrize("source", SOURCES)
def test_cached_score_is_the_parsed_one(source, tmp_path):
    parsed = next(filter(None, (load_score(name, source, tmp_path) for name in list_scores(source))))
    cached = load_score(parsed.score_id, source, tmp_path)
    np.testing.assert_array_equal(cached.notes, parsed.notes)
    assert (cached.title, cached.composer) == (parsed.title, parsed.composer)
