"""Fine-tuning an encoder on multiple-choice questions: flags, batches, the checkpoint's folder, the training."""
