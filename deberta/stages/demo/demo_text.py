"""The text of the demo's synthetic NLI: facts and their phrasings, and each genre's text around them. Our own text."""

from __future__ import annotations

from dataclasses import dataclass

MATCHED_GENRES = ("fiction", "government", "slate", "telephone", "travel")
MISMATCHED_GENRES = ("facetoface", "letters", "nineeleven", "oup", "verbatim")

ENTITIES = (
    "Marta", "Óscar", "Zoë", "François", "Ingrid", "Pavel", "Nadia", "Hugo", "Aisha", "Tomás", "Greta", "Kenji",
    "Lucía", "Omar", "Petra", "Rafael", "Selma", "Viktor", "Yara", "Bruno", "Clara", "Dmitri", "Elena", "Farid",
    "Hanna", "Igor", "Jonas", "Karin", "Leon", "Mirela", "Noah", "Olga",
)  # fmt: skip


@dataclass(frozen=True)
class Attribute:
    """The subject of facts. An entity has one value of it, so a different value is a contradiction.

    `affirmed` and `denied` are phrasings with {e} and {v}; the last two of `affirmed` are rare in the matched genres.
    """

    name: str
    values: tuple[str, ...]
    affirmed: tuple[str, ...]
    denied: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "home",
        ("Lisbon", "Oslo", "Cairo", "Lima", "Zürich", "Boston", "Delhi", "Kyoto"),
        ("{e} lives in {v}", "{e} has a flat in {v}", "the home of {e} is in {v}",
         "{e} resides in {v}", "{v} is where {e} lives"),
        ("{e} does not live in {v}", "the home of {e} is not in {v}"),
    ),
    Attribute(
        "job",
        ("baker", "nurse", "pilot", "judge", "painter", "miner", "tailor", "clerk"),
        ("{e} works as a {v}", "{e} makes a living as a {v}", "the job of {e} is that of a {v}",
         "{e} is employed as a {v}", "working as a {v} is what {e} does"),
        ("{e} does not work as a {v}", "the job of {e} is not that of a {v}"),
    ),
    Attribute(
        "pet",
        ("cat", "dog", "parrot", "goat", "rabbit", "turtle", "pony", "ferret"),
        ("{e} keeps a {v}", "{e} owns a {v}", "the pet of {e} is a {v}",
         "{e} looks after a {v}", "there is a {v} that {e} keeps"),
        ("{e} does not own a {v}", "the pet of {e} is not a {v}"),
    ),
    Attribute(
        "drink",
        ("tea", "coffee", "cider", "water", "milk", "cocoa", "juice", "wine"),
        ("{e} drinks {v}", "{e} asked for {v}", "the drink of {e} is {v}",
         "{e} ordered some {v}", "some {v} is what {e} drinks"),
        ("{e} does not drink {v}", "the drink of {e} is not {v}"),
    ),
    Attribute(
        "day",
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        ("{e} arrives on {v}", "{e} will come on {v}", "the visit of {e} is on {v}",
         "{e} is expected on {v}", "{v} is when {e} arrives"),
        ("{e} does not arrive on {v}", "the visit of {e} is not on {v}"),
    ),
    Attribute(
        "instrument",
        ("piano", "violin", "flute", "drum", "harp", "cello", "guitar", "trumpet"),
        ("{e} plays the {v}", "{e} is good at the {v}", "the instrument of {e} is the {v}",
         "{e} performs on the {v}", "the {v} is what {e} plays"),
        ("{e} does not play the {v}", "the instrument of {e} is not the {v}"),
    ),
    Attribute(
        "coat",
        ("red", "green", "blue", "yellow", "white", "black", "brown", "purple"),
        ("{e} wears a {v} coat", "{e} bought a {v} coat", "the coat of {e} is {v}",
         "{e} came in a {v} coat", "a {v} coat is what {e} wears"),
        ("{e} does not wear a {v} coat", "the coat of {e} is not {v}"),
    ),
    Attribute(
        "payment",
        ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
        ("{e} paid {v} dollars", "{e} owes {v} dollars", "the bill of {e} is {v} dollars",
         "{e} was charged {v} dollars", "{v} dollars is what {e} paid"),
        ("{e} did not pay {v} dollars", "the bill of {e} is not {v} dollars"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A genre's text around the facts: clauses composed of its words, and its sayings; `joints` connect clauses."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    tails: tuple[str, ...]
    sayings: tuple[str, ...]
    joints: tuple[str, ...]


_PLAIN = (". ", ". ", ". ", "; ", ", and ", ", while ")
_SPOKEN = (" and ", " uh ", " ", ", ", " so ", " but ")


def _scene(
    nouns: str, verbs: str, adjectives: str, tails: str, sayings: str, joints: tuple[str, ...] = _PLAIN
) -> Scene:
    def phrases(text: str) -> tuple[str, ...]:
        return tuple(phrase.strip() for phrase in text.split(","))

    return Scene(
        tuple(nouns.split()), phrases(verbs), tuple(adjectives.split()), phrases(tails), phrases(sayings), joints
    )


SCENES = {
    "fiction": _scene(
        "lamp captain stranger door stairs letter shadow garden widow horse moon wolf tower sister ghost river "
        "forest mirror",
        "watched, followed, feared, forgot, remembered, hid, touched, waited for, whispered about, ran from",
        "cold dark silent pale ancient hidden broken wild narrow lonely",
        "before dawn, in the rain, at the end of the hall, without a word, all night, as if in a dream",
        "nobody dared to speak, it was a secret until then, the fire burned low, somewhere a clock kept counting",
    ),
    "government": _scene(
        "agency committee budget report section program office rule auditor cost estimate standard grant fee contract "
        "review policy survey",
        "approved, reviewed, reported, requires, limits, funded, measured, replaced, applies to, depends on",
        "federal annual final local public general financial technical current legal",
        "under the act, in fiscal year 1998, at 12 sites, on a monthly basis, after a period of comment, by law",
        "this excludes overhead, savings are difficult to measure, we agreed with these findings, see table 4(b)",
    ),
    "slate": _scene(
        "critic column scandal editor movie poll senator debate joke magazine reader theory candidate headline "
        "campaign author essay verdict",
        "mocked, praised, ignored, defended, explains, missed, attacked, sold, wrote about, laughed at",
        "famous odd angry clever modern political moral recent silly bitter",
        "this week, in print, on television, once again, for no reason, to say the least",
        "so much for the experts, everyone has an opinion, the argument is not new, the polls explain nothing",
    ),
    "telephone": _scene(
        "kid truck yard school game church car weather team lawn phone lake husband store neighbor show paper dinner",
        "likes, fixed, called, watches, bought, took, gets, needs, talks about, works on",
        "big little old good crazy cheap hot funny whole nice",
        "down here, last summer, every weekend, on the news, out there, for a while",
        "uh-huh, um-hum, oh really, you know how it goes, i guess that is right, yeah i know what you mean",
        _SPOKEN,
    ),
    "travel": _scene(
        "harbor market chapel museum beach ferry castle square village hotel bridge island temple guide palace path "
        "fountain valley",
        "faces, overlooks, attracts, opens onto, leads to, surrounds, shelters, serves, stands above, lies near",
        "medieval sandy quiet grand steep royal popular tiny sunny golden",
        "at sunset, in summer, on the coast, during the festival, uphill, from noon to six",
        "bring good shoes, the view is worth the climb, few visitors stay the night, boats can be hired by the hour",
    ),
    "facetoface": _scene(
        "kid grandmother school story teacher yard dog-house cousin porch dinner church song neighbor game",
        "told, remembered, likes, called, sang, took, watched, laughed at, talks about",
        "little old funny big whole shy good happy",
        "back then, every weekend, in third grade, for a while, at home",
        "mm-hmm, oh really, you know how it goes, it was the funniest thing",
        _SPOKEN,
    ),
    "letters": _scene(
        "gift campaign program school donor board member card museum grant volunteer office scholarship friend",
        "supports, funded, needs, helps, reported, thanked, approved, depends on, serves",
        "generous public annual local grateful recent special good",
        "this week, once again, on the enclosed card, after the campaign, by law",
        "thank you for your support, every gift counts, we hope to hear from you, costs keep rising",
    ),
    "nineeleven": _scene(
        "agency report controller message radar headquarters officer plan order tape flight office call review",
        "reported, reviewed, missed, ignored, requires, confirmed, called, waited for, depends on",
        "federal final urgent current secret military local hidden",
        "on the radar, at headquarters, in the final report, without a word, during the call",
        "no one had seen the memo, the tape has no record of it, officials disagreed, nothing was unusual",
    ),
    "oup": _scene(
        "child study factory worker habit survey retailer stock mother supplier market infant cost practice",
        "measured, followed, replaced, requires, limits, learns, explains, depends on, needs",
        "early general technical modern social local current quiet",
        "at an early age, on the coast, in the survey, by hand, on a monthly basis",
        "the evidence is thin, savings are difficult to measure, habits of this kind last, data are not new",
    ),
    "verbatim": _scene(
        "word pun reader dictionary slang essay joke letter author column origin phrase usage editor",
        "explains, mocked, ignored, defended, means, wrote about, remembered, praised, depends on",
        "odd old clever silly modern obscure famous general",
        "in print, once again, to say the least, up north, as a verb",
        "everyone has a theory, the joke does not translate, that reading is not new, so much for the experts",
    ),
}

LEADS = ("", "", "", "", "apparently, ", "in fact, ", "we know that ", "it is clear that ", "as stated, ")

ODD_JOINTS = (" -- ", " — ", "… ", "...  ", ".  ", " – ")
ODD_ENDINGS = (" 🙂", "  ", ". ", '."', " “", "…", "?!", " ☕", " (sic)", " ½")
