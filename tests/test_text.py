"""Broken replies are called broken, and ordinary ones, short, listed, in code or in Spanish, are not."""

import pytest

from audit.text import compression, degenerate, distinct, foreign_share, repetition, scripts, turn_leak

SENTENCE = "The harbour master counted the boats twice and wrote the number in his book. "

CODE = """Here is the function:

```python
def second_largest(numbers):
    first = second = float("-inf")
    for number in numbers:
        if number > first:
            first, second = number, first
        elif first > number > second:
            second = number
    return second
```

It walks the list once."""

LIST = """1. Wash the jar with hot water.
2. Dry the jar with a clean cloth.
3. Fill the jar up to the neck.
4. Close the jar and turn it over.
5. Label the jar with today's date."""

TABLE = """| day | rain | wind |
| --- | --- | --- |
| Monday | 3 mm | 12 km/h |
| Tuesday | 0 mm | 20 km/h |
| Wednesday | 11 mm | 7 km/h |"""

SPANISH_PROMPT = "¿Qué tiempo suele hacer en Madrid en octubre? Responde en español."
SPANISH = (
    "En octubre Madrid suele tener días templados, de unos veinte grados, y noches frescas. Llueve algo más que en "
    "septiembre, así que conviene llevar una chaqueta ligera y un paraguas pequeño."
)


def test_repetition_is_the_share_of_word_4_grams_seen_before():
    assert repetition("one two three four five six seven eight") == 0
    # 12 words have 9 4-grams, of which the last 5 stood before: a b c d | a b c d | a b c d.
    assert repetition("a b c d a b c d a b c d") == pytest.approx(5 / 9)
    assert repetition("A b C d a B c D a b c d") == pytest.approx(5 / 9)  # case does not hide it
    assert repetition("yes yes yes") == 0  # too short to repeat
    assert repetition("") == 0


def test_distinct_is_distinct_bigrams_over_all():
    assert distinct("one two three four") == 1
    assert distinct("a b a b a b") == pytest.approx(2 / 5)
    assert distinct("a b c a b", size=1) == pytest.approx(3 / 5)
    assert distinct("word") is None
    assert distinct("") is None


def test_compression_falls_with_repetition():
    assert compression(SENTENCE * 20) < 0.15 < 0.5 < compression(CODE)
    assert compression("") is None


def test_scripts_are_counted_by_letter():
    assert scripts("Ab1 ñ, Жд 你") == {"LATIN": 3, "CYRILLIC": 2, "CJK": 1}
    assert scripts("12 + 3 = 15 😀") == {}


def test_foreign_share_is_of_letters_in_scripts_that_the_prompt_lacks():
    assert foreign_share("abcd Жд 你好", "in English please") == pytest.approx(4 / 8)
    assert foreign_share("abcd Жд 你好", "по-русски") == pytest.approx(2 / 8)
    assert foreign_share("Latin is at home anywhere", "你好") == 0
    assert foreign_share("123 !?", "hello") == 0


@pytest.mark.parametrize(
    "text",
    [
        "Sure.\nUser: and what about pears?\nAssistant: Pears too.",
        "Sure.<|im_end|>\n<|im_start|>user\nAnd pears?",
        "Sure.\nhuman: and pears?",
        "<|start_header_id|>user<|end_header_id|>",
        "Fine.<start_of_turn>model",
        "ASSISTANT: here you are",
    ],
)
def test_another_turn_is_a_leak(text):
    assert turn_leak(text)
    assert "turn_leak" in degenerate(text, "Tell me about apples.")


@pytest.mark.parametrize("text", ["Ask the user: what now?", "A user interface.", "The assistant said: yes.", "im_end"])
def test_talk_about_users_and_assistants_is_no_leak(text):
    assert not turn_leak(text)


@pytest.mark.parametrize("text", ["", "   \n\t "])
def test_an_empty_reply_is_empty_and_nothing_else(text):
    assert degenerate(text, "Hello?") == ["empty"]


@pytest.mark.parametrize(
    "text",
    [
        "I am happy to help. " * 12,
        "no " * 40,
        "Dear friend, thank you. " + "and the sea and the sky " * 30,
        "\n".join(["- Drink water and rest well."] * 10),
    ],
)
def test_a_loop_is_looping(text):
    assert degenerate(text, "How do I sleep better?") == ["looping"]


@pytest.mark.parametrize("foreign", ["我认为这是一个很好的问题，因为它让人思考很多。", "Это очень хороший вопрос, спасибо."])
def test_a_foreign_script_is_told_from_the_prompts_own(foreign):
    assert degenerate(foreign, "What is a tide?") == ["foreign_script"]
    assert degenerate("Tides are waves. " + foreign, "What is a tide?") == ["foreign_script"]
    assert degenerate(foreign, foreign[:12]) == []


def test_all_that_is_wrong_is_named():
    text = "你好 世界 再见 朋友 " * 10 + "\nuser: again"
    assert degenerate(text, "Hello?") == ["looping", "turn_leak", "foreign_script"]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Yes.", "Is ice cold?"),
        ("4", "What is 2 + 2?"),
        ("No, no, no!", "May I paint the cat?"),
        ("Paris", "Capital of France?"),
        (SENTENCE.strip(), "Write a sentence."),
        (LIST, "How do I preserve plums?"),
        (TABLE, "A table of the weather, please."),
        (CODE, "Write a Python function that returns the second largest number in a list."),
        (SPANISH, SPANISH_PROMPT),
        (SPANISH, "What is the weather like in Madrid in October? Answer in Spanish."),
        ("The mean is μ = 3 and the spread σ = 2, so the share above 5 is some 16%.", "How many are above 5?"),
        ("你好 means hello in Chinese; it is said nee-how.", "How do I say hello in Chinese?"),
        ('{"name": "Bolt", "colour": "red", "price": 12}', "One imaginary toy as JSON."),
    ],
)
def test_an_ordinary_reply_is_clean(text, prompt):
    assert degenerate(text, prompt) == []
