"""Conversations to token ids and loss masks, under the model's own chat template."""
