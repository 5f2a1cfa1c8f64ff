"""Training metrics exported to Prometheus, by their names in MLflow."""

TRAINING_METRICS = {
    "step": "Optimizer steps done",
    "train_loss": "Training loss, the mean over the last ten steps, in nats per pixel",
    "validation_loss": "Loss on validation images, in nats per pixel",
    "learning_rate": "Learning rate",
    "gradient_norm": "Norm of the gradient before it is clipped",
    "images_per_second": "Images trained on per second, the time of the steps alone",
    "flop_utilization": "Share of what a large matrix product reaches on the same device",
    "data_wait_share": "Share of a step spent waiting for images",
    "skipped_steps": "Steps skipped because their loss or gradient was not finite",
    "skipped_spikes": "Steps skipped because their loss or gradient norm was far above those of the steps before",
    "worker_restarts": "Times that Ray Train has started the workers anew, since this process began to train",
}
