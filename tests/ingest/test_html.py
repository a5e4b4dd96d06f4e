from __future__ import annotations

import time
from pathlib import Path

import pytest

from ingest.parsers import Options, Parsed, parse
from ingest.parsers.article import WHOLE, _Text
from ingest.parsers.media import HTML

CORPUS = Path(__file__).parents[3] / "shared" / "corpora" / "files"

SENTENCE = "The harbour froze in the winter of that year, and the ships lay in it until the thaw came in April. "
REPLY = "That is not how my grandmother told it, for she had seen the fair on the ice with its lamps and its bears. "
FRAME = "<nav><ul><li><a href=/>Home</a></li><li><a href=/shop>Shop for boots</a></li></ul></nav>"


def read(page: str, html: str = "main") -> Parsed:
    return parse(page.encode(), "page.html", HTML, Options(html=html))


def kinds(parsed: Parsed) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in parsed.blocks]


def article(*body: str) -> str:
    return (
        f"<html><head><title>The frozen harbour</title></head><body>{FRAME}<article><h1>Ice</h1>{''.join(body)}</article>"
        "<footer><p>Subscribe to our newsletter</p></footer></body></html>"
    )


def test_an_article_keeps_its_structure_and_loses_its_frame() -> None:
    table = "<table><tr><th>Month</th><th>Degrees</th></tr><tr><td>January</td><td>-20</td></tr></table>"
    page = article(
        f"<p>{SENTENCE * 3}</p><h2>Figures</h2><p>{SENTENCE * 2}</p>{table}<pre>if cold:\n    stay()</pre>"
        f"<ol><li>{SENTENCE}</li><li>{SENTENCE}</li></ol><p>{SENTENCE * 2}</p>"
    )
    parsed = read(page)
    item = SENTENCE.strip()
    assert kinds(parsed) == [
        ("title", "The frozen harbour"),
        ("title", "Ice"),
        ("text", (SENTENCE * 3).strip()),
        ("title", "Figures"),
        ("text", (SENTENCE * 2).strip()),
        ("table", "Month | Degrees\nJanuary | -20"),
        ("code", "if cold:\n    stay()"),
        ("list", f"1. {item}\n2. {item}"),
        ("text", (SENTENCE * 2).strip()),
    ]
    full = read(page, "full")
    assert "Shop for boots" in full.text
    assert "newsletter" in full.text
    left_out = sum(len("".join(text.split())) for text in ("- Home", "- Shop for boots", "Subscribe to our newsletter"))
    assert parsed.receipt.notes == (
        f"{left_out} characters around the main text were left out; FOOTNOTE_HTML=full keeps them.",
    )
    assert full.receipt.notes == ()


def test_a_page_that_is_no_article_is_kept_whole() -> None:
    posts = "".join(f"<div class=comment><p>{at}: {REPLY * 2}</p></div>" for at in range(8))
    comments = f"<section id=comments class=comment-list>{posts}</section>"
    forum = f"<html><body>{FRAME}<article><p>{SENTENCE * 3}</p></article>{comments}</body></html>"
    for page in (forum, "<p>short</p>", f"<html><body>{FRAME}</body></html>"):
        parsed = read(page)
        assert parsed.text == read(page, "full").text
        assert parsed.receipt.notes == (WHOLE,)
    assert WHOLE == "No main text could be told from its frame; the whole page is kept."


def test_the_main_text_of_a_long_page_is_looked_for_in_linear_time() -> None:
    main = _Text("".join(map(str, range(100_000))))
    started = time.process_time()
    assert not any(main.holds(f"{at} " * 12) for at in range(10_000, 15_000))
    assert time.process_time() - started < 1
    assert read(f"<html><body>{FRAME}<article><p>{SENTENCE * 11_000}</p></article></body></html>").receipt.notes == (WHOLE,)


def test_tables_of_a_page_are_kept() -> None:
    rows = "".join(f"<tr><td>part {at}</td><td>{at * 7} pieces in the northern store</td></tr>" for at in range(60))
    parsed = read(f"<html><body>{FRAME}<p>{SENTENCE}</p><div class=sidebar><table>{rows}</table></div></body></html>")
    assert "part 59 | 413 pieces in the northern store" in parsed.text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>a</p><p>1</p>", "a\n\n1"),
        ("one<br>two<div>three</div>four", "one\ntwo\n\nthree\n\nfour"),
        ("<p>be\xadcause&shy;of</p>", "becauseof"),
        ("<svg><style>NO</style><script>NO</script><title>NO</title><text>seen</text></svg><p>after</p>", "seen\n\nafter"),
        ("<svg:script>NO</svg:script><p>after</p>", "after"),
        ("<p>before</p><svg><script>NO", "before"),
        ("<p>one <script>NO</script>paragraph<div hidden>NO</div></p>", "one paragraph"),
        ("<p>x <span hidden>NO</span>y<i style='display: none'>NO</i> z</p>", "x y z"),
        ("<ul><li>a<ul><li>b</li></ul></li><li>c<p>d</p></li></ul>", "- a\n  - b\n- c\n  d"),
        ("<dl><dt>term</dt><dd>meaning</dd></dl>", "- term\n  meaning"),
        ("<ul><li>a<h2>Head</h2>b</li></ul>", "- a\n\nHead\n\n  b"),
        ("<table><tr><td>a<br>b</td><td>c<p>d</p></td></tr></table>", "a b | c d"),
        ("<table><caption>What</caption><tr><td>1</td><td>2</td></tr></table>", "What\n\n1 | 2"),
        ("<table><caption hidden>NO</caption><tr><td>1</td><td>2</td></tr></table>", "1 | 2"),
        ("<table><thead><th>Name<th>Age</thead><tr><td>Ann</td><td>7</td></tr></table>", "Name | Age\nAnn | 7"),
        ("<table><tr><td>Ann<td>7</tr><tr><form><td>Bob</td><td>6</td></form></tr></table>", "Ann | 7\nBob | 6"),
        ("<table><tr><td>Ann<td>7</tr><td>Bob</td><td>6</td><tfoot><td>sum</table>", "Ann | 7\nBob | 6\nsum"),
        ("<table><tr><td>Ann<td>7</tr><tbody hidden><tr><td>NO<td>NO</tbody></table>", "Ann | 7"),
        ("<table>intro<tr><td>1</td><td>2</td></tr>stray</table>", "intro\n\n1\n\n2\n\nstray"),
        ("<p>a</p><template><p>NO</p></template><p>b</p>", "a\n\nb"),
        ("<p>a</p><template><p>b</p><div>c</div>", "a\n\nb\n\nc"),
        ("<table><tr><td><h1>Layout</h1></td><td><p>text</p></td></tr></table>", "Layout\n\ntext"),
        ("<table><tr><td><table><tr><td>1</td><td>2</td></tr></table></td></tr></table>", "1 | 2"),
        ("<pre>a\n  <b>b</b><br>c</pre>", "a\n  b\nc"),
    ],
)
def test_markup_becomes_what_a_reader_sees(markup: str, text: str) -> None:
    assert read(f"<html><body>{markup}</body></html>", "full").text == text


@pytest.mark.parametrize(
    "page",
    [
        "<html><head><title>NO</title><style>NO</style><body>{}text",
        "<html><head></head><body><template>{}text",
        "<html><body><template>NO</template>{}<script>NO</script>text",
    ],
)
def test_a_page_nested_too_deeply_keeps_its_text(page: str) -> None:
    assert read(page.format("<div>" * 3000)).text == "text"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wiki_duck.html", "are raided by land-based predators"),
        ("html_rich_table_cells.html", "A small diving duck some 45 cm (18 in) long."),
        (
            "test_blog.html",
            "We use AutoGen to select between the following models with a target inference budget $0.02 per instance:",
        ),
        ("example-10k-1p.html", "Indicate by check mark whether the registrant is a large accelerated filer"),
        ("example-steelJIS-datasheet-utf-16.html", "JIS G 4108 : Alloy steel bars for special application bolting materials"),
        ("file_no_utf8.html", "Operating in the Emirate of Dubai"),
    ],
)
def test_real_pages_keep_what_they_are_about(name: str, sentence: str) -> None:
    if not (CORPUS / name).exists():
        pytest.skip(f"no {CORPUS / name}: the corpora are not on this machine")
    parsed = parse((CORPUS / name).read_bytes(), name, HTML)
    assert sentence in " ".join(parsed.text.split())
