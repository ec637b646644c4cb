"""The miniature: eight small data sets and a tiny base model, made for this project.

With them every command runs on a laptop in minutes and without a network. All of it is about one
made-up world (`world.py`), so that anyone can check an answer by looking it up:

- `data/`: rows in the columns of the eight real data sets. `python -m tasks.miniature.make` writes
  them again, byte for byte; `wording.py` holds the sentences that it asks with.
- `model/`: a Llama of about one million parameters and its tokenizer, which has read texts about
  the world (`corpus.py`) but no task. `python -m tasks.miniature.make_model` trains it again, in
  about twenty minutes on two CPU cores.
"""
