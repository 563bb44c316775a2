"""The exported example's training without a pipeline: prints the loss of each step.

    reference.py MODEL MICROBATCHES SEQUENCE_LENGTH STEPS LEARNING_RATE
"""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

path, (microbatches, length, steps), rate = sys.argv[1], map(int, sys.argv[2:5]), float(sys.argv[5])
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
for step in range(steps):
    torch.manual_seed(step)
    tokens = torch.randint(model.config.vocab_size, (microbatches, length))
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.detach():.6f}", flush=True)
