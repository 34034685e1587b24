"""A hundred prompts of many kinds, and conversations of several turns."""

SUBJECTS = (
    "the moon",
    "bread",
    "photosynthesis",
    "the French Revolution",
    "a bicycle",
    "prime numbers",
    "jazz",
    "volcanoes",
    "the Python language",
    "chess",
)
FORMS = (
    "What is {}?",
    "Write one sentence about {}.",
    "Explain {} to a child of six.",
    "List three facts about {}.",
    "Why do people like {}?",
    "Translate into French: I am reading about {}.",
    "Give a title for a book about {}.",
    "Is {} older than a hundred years? Answer yes or no, and say why.",
    "Write a short poem about {}.",
    "def describe():\n    # returns a text about {}\n    return",
)
PROMPTS = tuple(form.format(subject) for form in FORMS for subject in SUBJECTS)
CONVERSATIONS = [
    [
        *([{"role": "system", "content": "You are a helpful assistant."}] if number % 2 else []),
        {"role": "user", "content": PROMPTS[2 * number]},
        {"role": "assistant", "content": f"Here it is: {SUBJECTS[number % 10]}, 1,234 times."},
        {"role": "user", "content": PROMPTS[2 * number + 1]},
    ]
    for number in range(50)
]
