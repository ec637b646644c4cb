"""The front door to lm-evaluation-harness (lm-eval): console command, model and tasks.

    mixlora-lm-eval --model mixlora --model_args pretrained=BASE,adapter=DIR \
        --tasks mixlora_arc_easy,arc_easy --metadata data_dir=DATA

`cli` is the command, `model` the model that it adds, `data` loads rows for the task configs in
`task_configs/`. Importing this package does not import lm-eval, which only those need.
"""
