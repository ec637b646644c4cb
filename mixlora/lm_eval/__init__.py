"""Scoring adapters with lm-evaluation-harness (lm-eval): a console command, a model and tasks.

    mixlora-lm-eval --model mixlora --model_args pretrained=BASE,adapter=DIR \
        --tasks mixlora_arc_easy,arc_easy --metadata data_dir=DATA

`cli` is the command and `model` the model that it adds to lm-eval. `task_configs/` describes the
tasks of the paper, whose rows `data` loads. Importing this package does not import lm-eval.
"""
