from fastapi import FastAPI

from depot.orders.routes import router as orders
from depot.stock.routes import router as stock

app = FastAPI()
app.include_router(stock)
app.include_router(orders)
