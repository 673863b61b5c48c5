"""Train four layers on the embedded digits, evaluate them, and use the network as a plain torch module."""

import ffstream as ff

config = ff.Config(layers=4, width=200, epochs=5, data="digits")
run = ff.train(config, run_dir="runs/quickstart", resume=True)
print(f"test error by goodness: {100 * run.evaluate().error:.2f} %")
print(f"test error by softmax:  {100 * run.evaluate('softmax').error:.2f} %")

network = ff.load(run.path)
images = ff.SOURCES["digits"](None).test.images[:5]
print("goodness of each label:", network(images).shape)
print("predicted:", network.predict(images).tolist())
