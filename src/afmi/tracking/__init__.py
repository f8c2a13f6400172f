"""Explanations where trainings are tracked: TensorBoard, Weights & Biases, MLflow.

None of these packages is needed until it is used.
"""
