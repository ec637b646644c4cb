"""Fine-tune a model with MixLoRA and the Hugging Face Trainer, save the adapter, load it, use it.

From the repository's root: ``python examples/finetune.py [FOLDER]``; the adapter goes to FOLDER.
"""

import sys

import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from mixlora import MixLoraConfig

BASE = "tasks/miniature/model"  # or a hub id of a supported family
OUTPUT = sys.argv[1] if len(sys.argv) > 1 else "output/finetuned"
TEXTS = [f"Question: what is {n} plus one?\nAnswer: {n + 1}" for n in range(32)]

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
model = get_peft_model(model, MixLoraConfig(task_type="CAUSAL_LM", num_experts=8, top_k=2))
model.print_trainable_parameters()
arguments = TrainingArguments(
    OUTPUT, num_train_epochs=3, learning_rate=2e-3, logging_steps=4, report_to="none"
)
rows = [tokenizer(text + tokenizer.eos_token) for text in TEXTS]
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
Trainer(model, arguments, collator, rows).train()
model.save_pretrained(OUTPUT)

loaded = AutoPeftModelForCausalLM.from_pretrained(OUTPUT)  # finds the base by itself
prompt = tokenizer("Question: what is 7 plus one?\nAnswer:", return_tensors="pt")
answer = loaded.generate(**prompt, max_new_tokens=8, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
