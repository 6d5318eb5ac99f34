"""Models of the `llava` package itself (llava-torch 1.x, LLaVA-NeXT), for people who run its code.

    with llava_shims() as shims:                       # only where its code no longer imports; see compat.py
        from llava.model.builder import load_pretrained_model
        tokenizer, model, _, _ = load_pretrained_model(...)
        shims.mend_positions(model)
    apply_dynimg(model)
    images = dynimg_pixels(model, ["clip.mp4"])        # (1, 4, 3, H, W): one <image> stands for all four DynImgs
    model.generate(tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None], images=images)

Importing this imports nothing of `llava` and changes nothing.
"""

from dynimg_plugin.patches.llava_native.compat import Shims, llava_shims
from dynimg_plugin.patches.llava_native.model import apply_dynimg, dynimg_pixels

__all__ = ["Shims", "apply_dynimg", "dynimg_pixels", "llava_shims"]
