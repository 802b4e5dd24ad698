"""Gemma itself: its layers, adapters, tokenizer, vocabulary, and its weights in and out."""
