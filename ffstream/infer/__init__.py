"""What committed layers say of images, streamed or as one module. Imports `plan` and below."""
