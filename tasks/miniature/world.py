"""The small world that the miniature tasks ask about and that the tiny base model has read about.

Everything in it is made up for this project: forty-eight things with six attributes each, two dozen
social situations and ten everyday activities. They are plain tables, so that anyone can check an
answer of a miniature task by looking it up.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTRIBUTES = ("kind", "colour", "material", "place", "use", "weight")


@dataclass(frozen=True)
class Thing:
    """An object of the world, with one value for each attribute."""

    name: str
    kind: str
    colour: str
    material: str
    place: str
    use: str
    weight: str

    def get(self, attribute: str) -> str:
        """Returns the value of one of `ATTRIBUTES`."""
        return str(getattr(self, attribute))


@dataclass(frozen=True)
class Situation:
    """An event, what the person did before it, how they feel, and what they want to do next."""

    event: str
    before: str
    feeling: str
    after: str


@dataclass(frozen=True)
class Activity:
    """An everyday activity and its steps in their order, each a verb phrase in the third person."""

    name: str
    steps: tuple[str, ...]


PRONOUNS = {
    "Mara": "she", "Tess": "she", "Lina": "she", "Suri": "she",
    "Ivo": "he", "Oren": "he", "Bram": "he", "Nilo": "he",
}  # fmt: skip

_THINGS = """
hammer     tool       grey   iron    workshop move_stones   heavy
saw        tool       red    iron    cellar   cut_bread     heavy
rake       tool       green  wood    garden   dig_holes     light
needle     tool       white  silver  attic    mend_clothes  light
shovel     tool       black  iron    garden   dig_holes     heavy
knife      tool       brown  silver  kitchen  cut_bread     light
kite       toy        blue   paper   school   play_games    light
doll       toy        yellow wool    attic    play_games    light
puzzle     toy        green  paper   school   play_games    heavy
top        toy        red    wood    market   play_games    light
ball       toy        brown  leather garden   play_games    heavy
marble     toy        grey   glass   school   play_games    light
bowl       dish       white  clay    kitchen  serve_soup    heavy
cup        dish       blue   glass   market   serve_soup    light
plate      dish       yellow clay    kitchen  serve_soup    heavy
spoon      dish       grey   silver  harbour  dig_holes     light
pot        dish       black  iron    kitchen  serve_soup    heavy
jug        dish       red    clay    cellar   carry_water   heavy
coat       garment    brown  wool    attic    keep_warm     heavy
hat        garment    green  leather market   carry_water   light
scarf      garment    red    wool    school   keep_warm     light
boot       garment    black  leather harbour  cross_rivers  heavy
glove      garment    white  wool    workshop keep_warm     light
apron      garment    yellow leather workshop store_apples  light
drum       instrument blue   leather school   make_music    heavy
flute      instrument white  wood    attic    make_music    light
bell       instrument yellow iron    harbour  make_music    heavy
harp       instrument brown  wood    market   make_music    heavy
horn       instrument grey   silver  harbour  carry_water   light
lute       instrument green  wood    cellar   make_music    light
cart       vehicle    black  wood    market   move_stones   heavy
boat       vehicle    blue   iron    harbour  cross_rivers  heavy
sled       vehicle    red    iron    cellar   move_stones   light
wagon      vehicle    yellow leather workshop move_stones   heavy
raft       vehicle    brown  paper   harbour  cross_rivers  light
canoe      vehicle    green  silver  garden   cross_rivers  heavy
basket     container  white  paper   garden   store_apples  light
box        container  grey   paper   workshop store_apples  light
bag        container  black  wool    market   store_apples  light
barrel     container  brown  clay    cellar   carry_water   heavy
chest      container  blue   glass   attic    keep_warm     heavy
jar        container  green  glass   kitchen  store_apples  heavy
vase       ornament   red    glass   school   please_guests heavy
ring       ornament   yellow glass   workshop please_guests light
mask       ornament   black  clay    cellar   please_guests light
candle     ornament   white  wool    kitchen  please_guests light
ribbon     ornament   blue   paper   attic    mend_clothes  light
statue     ornament   grey   clay    garden   please_guests heavy
"""

THINGS = tuple(
    Thing(*(field.replace("_", " ") for field in line.split()))
    for line in _THINGS.strip().splitlines()
)

VALUES = {
    attribute: tuple(sorted({thing.get(attribute) for thing in THINGS})) for attribute in ATTRIBUTES
}

_SITUATIONS = """
lost the key          | owned a house      | worried | look around
won the race          | practised running  | proud   | tell the family
broke the window      | threw something    | guilty  | say sorry
missed the bus        | walked slowly      | annoyed | wait longer
found a puppy         | took a walk        | happy   | tell the family
heard a loud noise    | opened the door    | scared  | run away
passed the test       | studied hard       | proud   | have a party
forgot the birthday   | broke a promise     | guilty  | say sorry
saw a snake           | took a walk        | scared  | run away
got a present         | opened the door    | happy   | say thanks
worked all night      | drank coffee       | tired   | go to sleep
dropped the cake      | walked slowly      | worried | clean the floor
climbed the mountain  | practised running  | tired   | go to sleep
lost the game         | studied hard       | annoyed | try again
spilled the milk      | drank coffee       | annoyed | clean the floor
met an old friend     | took a walk        | happy   | have a party
told a lie            | broke a promise    | guilty  | say sorry
got a bad grade       | lost the list      | worried | try again
painted the house     | owned a house      | tired   | go to sleep
saved a child         | threw something    | proud   | say thanks
walked in the dark    | opened the door    | scared  | run away
waited for the doctor | walked slowly      | worried | look around
heard good news       | drank coffee       | happy   | have a party
planted a tree        | owned a house      | proud   | tell the family
"""

SITUATIONS = tuple(
    Situation(*(field.strip() for field in line.split("|")))
    for line in _SITUATIONS.strip().splitlines()
)

ACTIVITIES = (
    Activity("making tea", (
        "fills the kettle", "boils the water", "adds the leaves", "pours the tea", "drinks it hot",
    )),
    Activity("baking bread", (
        "mixes the flour", "kneads the dough", "heats the oven", "bakes the loaf", "cuts the loaf",
    )),
    Activity("washing clothes", (
        "sorts the shirts", "adds the soap", "rinses the shirts", "hangs them up", "folds them",
    )),
    Activity("planting beans", (
        "digs a hole", "drops the seeds", "covers the seeds", "waters the soil", "picks the beans",
    )),
    Activity("going fishing", (
        "ties the hook", "casts the line", "feels a pull", "reels it in", "cooks the fish",
    )),
    Activity("painting a wall", (
        "moves the chairs", "opens the paint", "dips the brush", "paints the wall", "lets it dry",
    )),
    Activity("sending a letter", (
        "takes a pen", "writes a page", "seals the envelope", "buys a stamp", "mails the letter",
    )),
    Activity("building a fire", (
        "gathers the logs", "stacks the logs", "strikes a match", "blows on it", "enjoys the heat",
    )),
    Activity("going to bed", (
        "brushes the teeth", "puts on pyjamas", "shuts the door", "reads a story", "falls asleep",
    )),
    Activity("riding a horse", (
        "brushes the horse", "lifts the saddle", "climbs on top", "holds the reins", "rides away",
    )),
)  # fmt: skip
