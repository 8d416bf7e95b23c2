"""Other names of options: those of earlier versions, and those that other projects use."""

# Options of earlier versions, with their present names.
RENAMED = {
    "model.reset_head": "train.reset_head",
    **{
        f"data.{name}": f"data.preprocessing.{name}"
        for name in ("resize_short", "crop_size", "interpolation", "antialias", "mean", "std")
    },
}
# What other projects call the options, in whatever section.
SYNONYMS = {
    "model.name": "arch architecture backbone model_name",
    "model.num_classes": "class_num nb_classes n_classes",
    "model.weights": "checkpoint pretrained_model",
    "model.drop_connect": "drop_path drop_path_rate",
    "data.batch_size": "bs batchsize",
    "data.num_workers": "workers",
    "data.preprocessing.crop_size": "image_size img_size imgsz input_size image_shape",
    "train.epochs": "epoch num_epochs max_epochs",
    "train.images": "num_samples seen_images total_images",
    "train.epoch_images": "epoch_size train_num_samples",
    "train.min_steps_per_epoch": "steps_per_epoch epoch_repeats",
    "train.start_from": "pretrained finetune",
    "train.freeze_epochs": "freeze_backbone frozen_epochs",
    "train.patience": "early_stop early_stopping",
    "train.amp": "use_amp fp16 mixed_precision",
    "train.label_smoothing": "smoothing",
    "train.class_weights": "class_weight loss_weights",
    "data.sampling": "sampler",
    "optim.name": "optimizer opt",
    "optim.lr": "learning_rate base_lr initial_lr",
    "optim.schedule": "scheduler lr_scheduler sched",
    "optim.warmup_epochs": "warmup warmup_epoch",
    "optim.warmup_lr": "warmup_start_lr warmup_init_lr warmup_learning_rate",
    "optim.clip_norm": "clip_grad grad_clip",
    "output_dir": "out_dir save_dir work_dir",
}
