"""lmms-eval's only door: the model `llava_dynimg`, its manifest and the tasks' registration."""
