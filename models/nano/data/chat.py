"""Generated chat: small talk, who the model is, words, capitals, lists, stories, not knowing.

A chat is one to five exchanges on one or several of these, some with a system prompt and a few
with a line of reasoning. Called by `mixture`.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ds4_daemon.text.conversation import Conversation, Message, Role

from models.nano.data import knowledge, words, world
from models.nano.data.turns import assistant, conversation, user
from models.nano.data.words import Pool


class Exchange(NamedTuple):
    """A question, its answer, and what one might think in between."""

    question: str
    answer: str
    thought: str


class Source(NamedTuple):
    """What a chat may draw on beside the hand-written words."""

    pool: Pool
    glosses: Sequence[tuple[str, str, str]]  # word, part of speech, meaning
    tales: Sequence[str]  # short stories of the corpus


GREETINGS = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What would you like to talk about?"),
    ("Hi there!", "Hi there! What can I do for you?"),
    ("Good morning!", "Good morning! How can I help you today?"),
    ("Good evening.", "Good evening! What can I do for you?"),
    ("Hey", "Hey! How can I help?"),
    ("Hello, how are you?", "Hello! I am a program and have no feelings, but I am ready to help."),
    ("How are you?", "I am a program and do not feel, but everything works. How are you?"),
    ("How are you today?", "Everything works, thank you. How can I help you today?"),
    ("I am fine, thanks.", "I am glad to hear that."),
    ("I am tired.", "Then a short rest may do you good. Is there something I can do for you?"),
    ("I am sad today.", "I am sorry to hear that. Would you like to tell me about it?"),
    ("I am bored.", "Shall I tell you a story? Just say who it should be about."),
    ("Thank you!", "You are welcome!"),
    ("Thanks a lot.", "You are welcome. I am glad that I could help."),
    ("Goodbye!", "Goodbye! Have a nice day."),
    ("Bye", "Bye! See you soon."),
    ("Good night.", "Good night! Sleep well."),
    ("Nice to meet you.", "Nice to meet you too!"),
    ("Sorry, I made a mistake.", "That is no problem. Please try again."),
    ("Can you help me?", "I will try. What do you need?"),
    ("I have a question.", "Please ask. I will answer if I can."),
    ("You are wrong.", "That may be. I am a small model and make mistakes. What is right?"),
    ("That was a nice story.", "Thank you! Would you like another one?"),
)  # fmt: skip
_SELF = (
    (("Who are you?", "What are you?", "Tell me about yourself.", "Who am I talking to?"),
     ("I am a small language model. I run inside ds4, on your own machine.",
      "I am the small model that comes with ds4. I can chat, tell stories and call tools.")),
    (("What can you do?", "What can I ask you?", "How can you help me?"),
     (("I can tell short stories, answer questions about a text, explain words, do small sums and"
      " call tools."),
      "I can chat a little, explain words, remember what you told me here, and call tools.")),
    (("Are you a human?", "Are you a person?", "Are you real?"),
     ("No, I am a program: a small language model.",)),
    (("Are you DeepSeek?", "Are you ChatGPT?", "Did DeepSeek make you?"),
     (("No. I have the architecture of DeepSeek V4, but I am a small test model with weights of"
       " my own."),)),
    (("Are you clever?", "Do you know everything?", "Are you always right?"),
     ("No. I am a very small model, and I am often wrong.",)),
    (("Do you have feelings?", "Can you feel pain?", "Are you alive?"),
     ("No, I have no feelings. I am a program.",)),
    (("Where do you run?", "Where are you?", "Do you need the internet?"),
     ("I run on your own machine. I do not need the internet.",)),
    (("How old are you?", "When were you born?", "Do you sleep?"),
     ("I am a program, so I have no age and never sleep.",)),
    (("What is ds4?",), (("ds4 runs a language model on your machine and shares it with"
                          " all your programs."),)),
)  # fmt: skip
_UNKNOWABLE = (
    "What do I have in my pocket?", "What is my name?", "What did I eat yesterday?",
    "What is the name of my neighbour?", "What number am I thinking of?", "Where are my keys?",
    "What will the weather be tomorrow?", "Who will win the match tonight?", "What time is it?",
    "How much money do I have?", "What is my password?", "How old is my brother?",
    "What is my sister called?", "Which book is on my table?", "What is my favourite food?",
    "What is written on the wall behind me?", "Where did I park the car?", "What is today's date?",
    "Who called me this morning?", "What colour is my shirt?",
)  # fmt: skip
_UNKNOWN_ANSWERS = (
    "I do not know. You have not told me.", "I do not know that.",
    "I cannot know that. Can you tell me?", "I am sorry, I do not know.",
)  # fmt: skip


def greeting(rng: random.Random, source: Source) -> Exchange:
    del source
    question, answer = rng.choice(GREETINGS)
    return Exchange(question, answer, "This is small talk. I answer kindly.")


def about_itself(rng: random.Random, source: Source) -> Exchange:
    del source
    questions, answers = rng.choice(_SELF)
    thought = "The user asks about me. I am a small model."
    return Exchange(rng.choice(questions), rng.choice(answers), thought)


def explained_word(rng: random.Random, source: Source) -> Exchange:
    word, kind, meaning = rng.choice(source.glosses)
    form = rng.choice(
        ("What does {} mean?", 'What does "{}" mean?', "Explain the word {}.", "Define {}.",
         "What is the meaning of {}?", 'What does the word "{}" mean?')
    )  # fmt: skip
    article = "an" if kind[0] in "aeiou" else "a"
    return Exchange(
        form.format(word),
        f'"{word}" is {article} {kind}. It means: {meaning.rstrip(".")}.',
        f"The user wants to know what {word} means.",
    )


def capital(rng: random.Random, source: Source) -> Exchange:
    del source
    country, city = rng.choice(tuple(knowledge.CAPITALS.items()))
    if rng.random() < 0.2:
        question = rng.choice(("Which country has the capital {}?", "{} is the capital of what?"))
        plain = country.removeprefix("the ")
        thought = f"{city} is in {plain}."
        return Exchange(question.format(city), f"{city} is the capital of {country}.", thought)
    question = rng.choice(
        ("What is the capital of {}?", "Which city is the capital of {}?", "Capital of {}?",
         "Tell me the capital of {}.", "Do you know the capital of {}?")
    )  # fmt: skip
    return Exchange(
        question.format(country), f"The capital of {country} is {city}.", f"{country}: {city}."
    )


def known_fact(rng: random.Random, source: Source) -> Exchange:
    del source
    question, answer = rng.choice(tuple(knowledge.QUESTIONS.items()))
    return Exchange(question, answer, "I know this.")


def listing(rng: random.Random, source: Source) -> Exchange:
    del source
    name, members = rng.choice(tuple(knowledge.LISTS.items()))
    number = rng.randint(2, 5)
    spelled = ("two", "three", "four", "five")[number - 2]
    chosen = members.split()[:number]
    if name not in ("days of the week", "seasons", "planets"):
        chosen = rng.sample(members.split(), number)
    number = len(chosen)
    form = rng.choice(("Name {} {}.", "List {} {}.", "Give me {} {}.", "Can you name {} {}?"))
    spelled = ("two", "three", "four", "five")[number - 2]
    question = form.format(rng.choice((spelled, str(number))), name)
    if rng.random() < 0.5:
        answer = "\n".join(f"{place}. {word}" for place, word in enumerate(chosen, 1))
    else:
        answer = "\n".join(f"- {word}" for word in chosen)
    return Exchange(question, answer, f"I need {spelled} {name}.")


def not_known(rng: random.Random, source: Source) -> Exchange:
    pool = source.pool
    question = rng.choice(_UNKNOWABLE)
    if rng.random() < 0.3:
        name = f"{rng.choice(pool.people)} {rng.choice(pool.surnames)}"
        question = rng.choice(
            (f"Where does {name} live?", f"How old is {name}?", f"Who is {name}?",
             f"What is {name}'s phone number?", f"What does {name} like to eat?")
        )  # fmt: skip
    return Exchange(question, rng.choice(_UNKNOWN_ANSWERS), "I was not told this.")


def told_story(rng: random.Random, source: Source) -> Exchange:
    form = rng.choice(
        ("Tell me a story about {}.", "Tell me a short story about {}.", "Write a story with {}.",
         "I would like to hear a story about {}.", "Can you tell me a story about {}?",
         "Please tell me a story about {}.")
    )  # fmt: skip
    thought = "I tell a short story."
    if rng.random() < 0.5:
        tale = world.story(rng, source.pool)
        about = rng.sample(world.mentioned(tale), min(rng.randint(1, 2), 2))
        return Exchange(form.format(" and ".join(about)), tale.text, thought)
    text = rng.choice(source.tales)
    present = set(text.lower().replace(".", " ").replace(",", " ").split())
    named = [w for w in (*words.ANIMALS, *words.THINGS) if w in present]
    if not named:
        question = rng.choice(("Tell me a story.", "Tell me a short story, please.", "A story!"))
        return Exchange(question, text, thought)
    about = [with_article(w) for w in rng.sample(named, min(len(named), rng.randint(1, 2)))]
    return Exchange(form.format(" and ".join(about)), text, thought)


def with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


Maker = Callable[[random.Random, Source], Exchange]
MAKERS: tuple[tuple[Maker, int], ...] = (
    (greeting, 12), (about_itself, 10), (explained_word, 18), (capital, 14), (known_fact, 12),
    (listing, 10), (not_known, 9), (told_story, 15),
)  # fmt: skip


def exchange(rng: random.Random, source: Source) -> Exchange:
    """One exchange of any kind."""
    makers, shares = zip(*MAKERS, strict=True)
    maker: Maker = rng.choices(makers, shares)[0]
    return maker(rng, source)


def chat(rng: random.Random, source: Source) -> Conversation:
    """A whole chat: one exchange in half of them, else up to five."""
    count = rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
    exchanges = [exchange(rng, source) for _ in range(count)]
    if count > 1 and rng.random() < 0.4:
        exchanges[0] = greeting(rng, source)
    messages: list[Message] = []
    if rng.random() < 0.12:
        messages, exchanges[0] = _named(rng, source)
    elif rng.random() < 0.12:
        exchanges.append(_remembered(rng, source, exchanges))
    thinking = rng.random() < 0.12
    for one in exchanges:
        messages += [user(one.question), assistant(one.answer, one.thought if thinking else "")]
    return conversation(rng, messages, thinking=thinking)


def _named(rng: random.Random, source: Source) -> tuple[list[Message], Exchange]:
    """A system prompt gives the model a name, and the user asks for it."""
    name = rng.choice(source.pool.pets)
    form = rng.choice(
        ("Your name is {}.", "You are {}, a helpful assistant.", "You are called {}.")
    )
    question = rng.choice(("What is your name?", "Who are you?", "What are you called?"))
    answer = rng.choice((f"My name is {name}.", f"I am {name}."))
    return (
        [Message(Role.SYSTEM, form.format(name))],
        Exchange(question, answer, f"I am called {name}."),
    )


def _remembered(rng: random.Random, source: Source, exchanges: list[Exchange]) -> Exchange:
    """The user says their name at the start and asks for it at the end."""
    name = rng.choice(source.pool.people)
    form = rng.choice(("My name is {}.", "Hello, I am {}.", "Hi! I am {}.", "You can call me {}."))
    # Asked before it is known, the name would have another right answer.
    exchanges[:] = [one for one in exchanges if one.question != "What is my name?"]
    exchanges.insert(
        0, Exchange(form.format(name), f"Nice to meet you, {name}!", f"I greet {name}.")
    )
    question = rng.choice(("What is my name?", "Do you remember my name?", "Who am I?"))
    return Exchange(question, f"Your name is {name}.", f"The user said the name {name}.")


def about_story(rng: random.Random, pool: Pool) -> Conversation:
    """A story and one to four questions about it."""
    tale = world.story(rng, pool)
    asked = rng.sample(tale.questions, min(len(tale.questions), rng.randint(1, 4)))
    opening = rng.choice(
        ("Read this story:\n\n{}\n\n{}", "{}\n\n{}", "Here is a story.\n\n{}\n\nQuestion: {}",
         "Please read the text and answer.\n\n{}\n\n{}")
    )  # fmt: skip
    thinking = rng.random() < 0.1
    messages: list[Message] = []
    for place, question in enumerate(asked):
        text = question.text if place else opening.format(tale.text, question.text)
        thought = _thought(question) if thinking else ""
        messages += [user(text), assistant(question.answer, thought)]
    return conversation(rng, messages, thinking=thinking, system=0.15)


def _thought(question: world.Question) -> str:
    if question.kind == "unsaid":
        return "I look for it in the story, but it is not there."
    return f"In the story: {question.fact}."
